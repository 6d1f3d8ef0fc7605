"""Data folders of Kaldi and ESPnet as a corpus: what their tables say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_todm.bin.data_stages.prepare_data import main
from espnet_todm.data.corpus import prepare_split
from espnet_todm.data.kaldi import list_utterances
from espnet_todm.data.listing import Utterance
from espnet_todm.data.tables import cuts_of, iterate_cuts
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_table


def write(folder: Path, **tables: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (folder / name.replace("_", ".")).write_text(rows, encoding="utf-8")
    return folder


def audio(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(size=int(16000 * seconds)) / 10
    soundfile.write(path, noise, 16000)
    return path


def test_utterances_are_files(tmp_path: Path) -> None:
    write(
        tmp_path / "a", wav_scp="u2 /x/2.wav\nu1 /x/1.flac\n", text="u1 A  B\nu3 C\n", utt2spk="u1 s1\nu2 s2\nu4 s4\n"
    )
    write(tmp_path / "b", wav_scp="v1 /y/1.wav\n", text="v1 D\n")
    found = list_utterances(tmp_path, ["a", "b"])
    assert len(found.utterances) == 4
    assert list(found.utterances) == [
        Utterance("u1", "s1", Path("/x/1.flac"), "A  B"),
        Utterance("u2", "s2", Path("/x/2.wav"), None),
        Utterance("u3", "u3", None, "C"),
        Utterance("v1", "v1", Path("/y/1.wav"), "D"),
    ]
    assert list_utterances(tmp_path, ["a"]).digest != found.digest


def test_utterances_are_segments(tmp_path: Path) -> None:
    segments = "r1-a r1 0.5 1.25\nr1-b r1 1.5 -1\n"
    write(tmp_path / "a", wav_scp="r1 /x/1.wav\nr2 /x/2.wav\n", segments=segments, text="r1-a A\nr1-b B\n")
    assert list(list_utterances(tmp_path, ["a"]).utterances) == [
        Utterance("r1-a", "r1-a", Path("/x/1.wav"), "A", 0.5, 1.25),
        Utterance("r1-b", "r1-b", Path("/x/1.wav"), "B", 1.5, None),
    ]


@pytest.mark.parametrize("home", ["asr1/data/a", "asr1/data", "asr1", ""])
def test_relative_paths_begin_at_or_above_the_folder(tmp_path: Path, home: str) -> None:
    write(tmp_path / "asr1/data/a", wav_scp="u1 downloads/1.wav\nu2 downloads/2.wav\n", text="u1 A\nu2 B\n")
    audio(tmp_path / home / "downloads/1.wav")
    paths = [one.audio for one in list_utterances(tmp_path / "asr1/data", ["a"]).utterances]
    assert paths == [tmp_path / home / f"downloads/{n}.wav" for n in (1, 2)]


def test_a_prepared_folder_has_the_segments(tmp_path: Path) -> None:
    path = audio(tmp_path / "1.wav", 2.0)
    segments = "a r 0.5 1.25\nb r 1.5 -1\nc r 1.9 4\nd r 2.5 -1\n"
    write(tmp_path / "in/a", wav_scp=f"r {path}\n", segments=segments, text="a A\nb B\nc C\nd D\n")
    data = prepare_split(tmp_path / "in", "a", ["a"], tmp_path / "out", reader=list_utterances)
    cuts = {cut.id: (cut.start, cut.duration, cut.supervisions[0].text) for cut in iterate_cuts(cuts_of(data))}
    assert cuts == {"a": (0.5, 0.75, "A"), "b": (1.5, 0.5, "B")}
    assert read_table(data / "text") == {"a": "A", "b": "B"}
    problems = (data / "problems.tsv").read_text()
    assert "a segment from 1.90 to 4.00 s, but 2.00 s of audio" in problems and "from 2.50 to 2.00 s" in problems


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"text": "u A\n"}, "a: no wav.scp in it; a data folder has wav.scp and text"),
        ({"wav_scp": "u /x.wav\n"}, "a: no text in it"),
        ({"wav_scp": "u sox x.mp3 -t wav - |\n", "text": "u A\n"}, "u is a shell command"),
        ({"wav_scp": "u /dump/data.ark:12\n", "text": "u A\n"}, "u: /dump/data.ark:12 lies in an archive"),
        ({"wav_scp": "u far/x.wav\n", "text": "u A\n"}, "u: far/x.wav is neither in .* nor in a folder above it"),
        ({"wav_scp": "u /x.wav\nu /y.wav\n", "text": "u A\n"}, "a/wav.scp: u is listed twice"),
        ({"wav_scp": "u /x.wav\n", "text": "u A\nu B\n"}, "a/text: u is listed twice"),
        ({"wav_scp": "r /x.wav\n", "text": "u A\n", "segments": "u q 0 1\n"}, "u: its recording q is not in wav.scp"),
        ({"wav_scp": "r /x.wav\n", "text": "u A\n", "segments": "u r 2 1\n"}, "segments: u: start 2, end 1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    write(tmp_path / "a", **tables)
    with pytest.raises(UserError, match=message) as caught:
        list_utterances(tmp_path, ["a"])
    assert "\n" not in str(caught.value)


def test_an_utterance_of_two_folders_is_told(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, wav_scp="u /x.wav\n", text="u A\n")
    with pytest.raises(UserError, match="b/text: u is listed twice"):
        list_utterances(tmp_path, ["a", "b"])


def test_the_command_takes_the_folder_data_but_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = audio(tmp_path / "1.wav")
    write(tmp_path / "asr1/data/dev", wav_scp=f"u {path}\n", text="u A\n", utt2spk="u s\n")
    monkeypatch.chdir(tmp_path)
    main(["--layout", "kaldi", "--corpus", "asr1", "--splits", "dev"])
    assert read_table("data/dev/utt2spk") == {"u": "s"} and read_table("data/dev/text") == {"u": "A"}
    with pytest.raises(UserError, match="corpus: data is where this command writes"):
        main(["--layout", "kaldi", "--corpus", ".", "--splits", "dev"])
    with pytest.raises(UserError, match="download: what Kaldi's data folders name is not downloaded"):
        main(["--layout", "kaldi", "--corpus", "asr1", "--splits", "dev", "--download"])
