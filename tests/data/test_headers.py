"""Audio whose header promises more than the file holds, as broken downloads leave it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest
import soundfile

from espnet_todm.data.headers import cut_off
from tests.sph_corpus import write_shorten, write_sph
from tests.tiny_corpus import RATE, noise, truncate

FORMATS: dict[str, dict[str, Any]] = {
    "16 bits.wav": {"subtype": "PCM_16"},
    "floats.WAV": {"subtype": "FLOAT"},
    "mu-law.wav": {"subtype": "ULAW"},
    "extensible.wav": {"format": "WAVEX"},
    "long.wav": {"format": "RF64"},
    "sphere.SPH": {"format": "NIST", "subtype": "PCM_16"},
}


def missing(path: Path) -> Optional[str]:
    return cut_off(path, soundfile.info(path).duration)


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_file_is_told_from_a_whole_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(2.0), RATE, **FORMATS[name])
    assert missing(path) is None
    truncate(path)
    assert re.match(r"cut off: its header promises 2.00 s, but it holds (0\.9|1\.0)", str(missing(path)))


def test_ogg_has_no_length_but_whole_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    soundfile.write(path, noise(4.0), RATE)
    whole = path.read_bytes()
    assert missing(path) is None
    for lost in (1, 100, len(whole) // 2):
        path.write_bytes(whole[:-lost])
        assert cut_off(path, 1.0) == "cut off: its last page is not whole"


def write_size(size: int) -> Callable[[Path], None]:
    """Make a WAV file claim so many bytes of samples, as what writes into a pipe does."""

    def write(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = content.index(b"data") + 4
        content[place : place + 4] = struct.pack("<I", size)
        path.write_bytes(content)

    return write


def odd_chunk(path: Path) -> None:
    """A chunk of odd length before the samples, which one byte follows that is no part of it."""
    content = path.read_bytes()
    place = content.index(b"data")
    path.write_bytes(content[:place] + struct.pack("<4sI", b"LIST", 5) + b"word\0\0" + content[place:])


def truncated_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def shorter_by_a_moment(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "change",
    [write_size(0xFFFFFFFF), write_size(0x7FFFF024), odd_chunk, truncated_header, shorter_by_a_moment],
)
def test_what_promises_nothing_more_passes(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(1.0), RATE)
    change(path)
    assert cut_off(path, 1.0) is None


def test_other_files_are_left_to_their_decoders(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"no audio at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "x.sph").write_bytes(b"NIST_1A\n   1024\nsample_rate -i 0\nsample_count -i 7\nend_head\n".ljust(1030))
    for name in ("x.wav", "empty.wav", "x.sph"):
        assert cut_off(tmp_path / name, 1.0) is None
    soundfile.write(tmp_path / "x.flac", noise(1.0), RATE)
    assert cut_off(tmp_path / "x.flac", 0.1) is None  # the decoder itself fails on half of one


def test_sphere_files_of_other_kinds(tmp_path: Path) -> None:
    write_sph(tmp_path / "x.sph", noise(1.0), subtype="ULAW")
    assert missing(tmp_path / "x.sph") is None
    write_shorten(tmp_path / "y.sph")
    with pytest.raises(ValueError, match="compressed with shorten"):
        cut_off(tmp_path / "y.sph", 1.0)
