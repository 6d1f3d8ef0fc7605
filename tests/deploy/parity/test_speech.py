"""Utterances with their text, as a data folder has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_todm.deploy.parity.speech import read_speech
from espnet_todm.errors import UserError
from espnet_todm.util.files import write_table
from tests.tiny_corpus import noise


def test_speech_is_spread_over_the_speakers_and_checked(tmp_path: Path) -> None:
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", noise(0.5, number), 16000)
    write_table(tmp_path / "wav.scp", {f"u{n}": str(tmp_path / f"{n}.wav") for n in range(6)})
    write_table(tmp_path / "text", {f"u{n}": f"WORD {n}" for n in range(6)})
    tables = tmp_path / "wav.scp", tmp_path / "text"
    assert [one.name for one in read_speech(*tables, 3)] == ["u0", "u2", "u4"]
    assert len(read_speech(*tables)) == len(read_speech(*tables, 100)) == 6
    assert read_speech(*tables, 1)[0].seconds == 0.5
    write_table(tmp_path / "segments", {"part": "u3 0.1 0.35"})
    write_table(tmp_path / "text", {"part": "A"})
    (part,) = read_speech(*tables)
    assert np.array_equal(part.samples, soundfile.read(tmp_path / "3.wav", dtype="float32")[0][1600:5600])
    write_table(tmp_path / "segments", {"part": "u3 0.1 -1 0"})  # to the end, of channel 0
    (part,) = read_speech(*tables)
    assert len(part.samples) == 6400
    write_table(tmp_path / "segments", {"part": "u3 0,1 0,35"})
    with pytest.raises(UserError, match="segments: part: start '0,1', end '0,35', but numbers of seconds"):
        read_speech(*tables)
    (tmp_path / "segments").unlink()
    soundfile.write(tmp_path / "3.wav", noise(0.5), 8000)
    write_table(tmp_path / "text", {"u3": "A"})
    for change, words in (
        (lambda: None, "u3 has 1 channel.* of 8000 Hz"),
        (lambda: (tmp_path / "3.wav").write_bytes(b"no audio"), "u3 cannot be read"),
        (lambda: write_table(tmp_path / "wav.scp", {"u3": "cat x |"}), "u3 is a shell command"),
        (lambda: write_table(tmp_path / "text", {"v": "A"}), "none of its 1 utterances"),
    ):
        change()
        with pytest.raises(UserError, match=words):
            read_speech(*tables)
    with pytest.raises(UserError, match="utterances: 0"):
        read_speech(*tables, 0)
