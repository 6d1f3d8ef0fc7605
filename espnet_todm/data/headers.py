"""What the header of an audio file promises. libsndfile reads a WAV, sphere or Ogg file that was cut off without a word."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Optional

from espnet_todm.errors import UserError

_LEAST_LOSS = 0.05  # seconds; less is a header's rounding
_UNKNOWN_BYTES = 0x7FFFF000  # what writes into a pipe cannot know the length, and says this or more
_PLAIN_FORMATS = (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, mu-law, extensible: a second has a fixed number of bytes
_OGG_PAGE = 65307  # the longest


def cut_off(path: Path, seconds: float) -> Optional[str]:
    """In words what a file of so many readable seconds lacks, None where nothing is known to be missing.

    Raises UserError as :func:`sphere_seconds`.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == b"OggS":
            return "cut off: its last page is not whole" if _lacks_page_end(file) else None
        promised = _wav_seconds(file) if magic in (b"RIFF", b"RF64") else None
    if magic == b"NIST":
        promised = sphere_seconds(path)
    if promised is None or promised <= seconds + _LEAST_LOSS:
        return None
    return f"cut off: its header promises {promised:.2f} s, but it holds {seconds:.2f} s"


def sphere_seconds(path: Path) -> Optional[float]:
    """The length that a NIST sphere header states, or None where there is no such header.

    Raises UserError when the samples are compressed with shorten, which libsndfile does not read.
    """
    with path.open("rb") as file:
        head = file.read(16).split()
        if len(head) < 2 or head[0] != b"NIST_1A" or not head[1].isdigit():
            return None
        file.seek(0)
        lines = file.read(int(head[1])).split(b"end_head")[0].decode("latin-1").splitlines()
        magic = file.read(4)
    fields = dict(row for row in (line.split(" -", 1) for line in lines) if len(row) == 2)
    if "shorten" in fields.get("sample_coding", "") or magic == b"ajkg":
        raise UserError(
            f"{path}: compressed with shorten, which cannot be read here; convert it with "
            f"`sph2pipe -f wav {path.name} {path.stem}.wav` (or shorten -x) and leave the result beside it or in its place"
        )
    try:
        samples, rate = (int(fields[key].split()[1]) for key in ("sample_count", "sample_rate"))
    except (KeyError, ValueError, IndexError):
        return None
    return samples / rate if rate > 0 else None


def _wav_seconds(file: BinaryIO) -> Optional[float]:
    """The length that a WAV header states, None where it does not know it or samples are compressed."""
    file.seek(12)
    long, rate = 0, 0  # bytes of samples where 32 bits do not hold them, bytes a second
    while True:
        head = file.read(8)
        if len(head) < 8:
            return None
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            size = long if size == 0xFFFFFFFF else size
            return size / rate if rate and (long or size < _UNKNOWN_BYTES) else None
        content = file.read(size + size % 2)
        if name == b"ds64" and len(content) >= 16:
            long = struct.unpack("<Q", content[8:16])[0]
        if name == b"fmt " and len(content) >= 16:
            code, _, _, rate = struct.unpack("<HHII", content[:12])
            rate = rate if code in _PLAIN_FORMATS else 0


def _lacks_page_end(file: BinaryIO) -> bool:
    """Whether the last page of an Ogg file reaches beyond the file's end."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _OGG_PAGE))
    end = file.read()
    page = end[end.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 255
    table = page[27 : 27 + segments]
    return len(table) < segments or 27 + segments + sum(table) > len(page)
