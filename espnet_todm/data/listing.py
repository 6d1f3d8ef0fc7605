"""What a corpus reader hands over: the utterances of a split as they are listed on disk, before any audio is opened."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike

_NAMES_SHOWN = 12
_TO_THE_END = "-1"  # for an end; Kaldi's way to say so


@dataclass(frozen=True)
class Utterance:
    """One utterance as the corpus lists it: ``audio`` is None without a file, ``text`` None without a transcript.

    start, end: seconds in the audio; an end of None is the end of the file.
    """

    name: str
    speaker: str
    audio: Optional[Path]
    text: Optional[str]
    start: float = 0.0
    end: Optional[float] = None


class Utterances(Collection[Utterance]):
    """Utterances that are not in memory: each iteration makes them anew, ``count`` in all."""

    def __init__(self, make: Callable[[], Iterator[Utterance]], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Utterance]:
        return self._make()

    def __contains__(self, one: object) -> bool:
        return any(one == other for other in self)


@dataclass
class Listing:
    """The utterances of a split, sorted by name, and a digest of the files (paths and sizes) they were listed from."""

    utterances: Collection[Utterance]
    digest: str


Reader = Callable[[Path, Sequence[str]], Listing]
"""(corpus, folders) -> their utterances together."""


def digest(lines: SortedRows) -> str:
    """SHA-256 of rows of one line. Raises UserError for a file's name that is not UTF-8, which no table can hold."""
    found = hashlib.sha256()
    for number, (line,) in enumerate(lines):
        try:
            found.update((f"\n{line}" if number else line).encode())
        except UnicodeEncodeError:  # Python reads such names as halves of characters
            raise UserError(f"{line!r}: the file's name is not UTF-8; rename it") from None
    return found.hexdigest()


def parse_split(
    spec: str, corpora: Iterable[Path] = (), presets: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[str, tuple[str, ...]]:
    """A folder of one of ``corpora`` ("dev-clean"), a preset or "name=folder+folder" -> (name, folders).

    Raises UserError for anything else that cannot be a folder's name.
    """
    name, equals, folders = spec.partition("=")
    if equals:
        parts = tuple(folders.split("+"))
    elif any((corpus / name).is_dir() for corpus in corpora):
        parts = (name,)
    else:
        parts = (presets or {}).get(name, (name,))
    if not name or "/" in name or name.startswith(".") or not all(parts):
        raise UserError(f"split: {spec!r}, but a folder's name or name=folder+folder is expected")
    return name, parts


def corpus_folder(corpus: PathLike, inner: str) -> Path:
    """The folder that holds the splits: ``corpus`` itself or the folder ``inner`` in it. UserError when there is none."""
    given = Path(corpus)
    if not str(corpus) or not given.is_dir():
        raise UserError(f"corpus: {str(corpus)!r} is no folder; give the one that holds {inner}/")
    return given / inner if (given / inner).is_dir() else given


def split_folder(corpus: Path, folder: str) -> Path:
    """``corpus``/``folder``. Raises UserError, naming the folders that are there, when it is not."""
    top = corpus / folder
    if not top.is_dir():
        there = sorted(entry.name for entry in corpus.iterdir() if entry.is_dir())
        shown = ", ".join(there[:_NAMES_SHOWN]) + (", ..." if len(there) > _NAMES_SHOWN else "")
        raise UserError(f"{folder}: no such folder in {corpus}; there are: {shown or 'none'}")
    return top


def files_below(top: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files below a folder whose names end so, in either case, folder by folder in a fixed order.

    Symbolic links are followed, and each real folder is read once. Hidden files are left out: macOS puts a ``._name``
    beside every file. A warning says how many links lead nowhere.
    """
    seen: set[str] = set()
    dangling: list[Path] = []
    for here, inner, names in os.walk(top, followlinks=True):
        real = os.path.realpath(here)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        visible = [] if real in seen else sorted(name for name in names if not name.startswith("."))
        seen.add(real)
        for path in (Path(here) / name for name in visible):
            if not path.exists():
                dangling.append(path)
            elif path.name.lower().endswith(suffixes):
                yield path
    if dangling:
        target = os.readlink(dangling[0])
        logging.warning("%s: %d links lead nowhere; first: %s -> %s", top, len(dangling), dangling[0], target)


def parse_segment(value: str, where: str) -> tuple[str, float, Optional[float]]:
    """What stands behind a name in Kaldi's ``segments`` -> recording, start and end in seconds; an end of None is its end.

    A channel behind the times is allowed: whoever reads the audio wants one channel in any case. Raises UserError, which
    begins with ``where``, when it is anything else.
    """
    fields = value.split()
    if len(fields) not in (3, 4):
        raise UserError(f"{where}: {value!r}, but recording, start, end and at most a channel are expected")
    to_the_end = fields[2] == _TO_THE_END
    start, end = parse_times(fields[1], "1e9" if to_the_end else fields[2], where)
    return fields[0], start, None if to_the_end else end


def parse_times(start: str, end: str, where: str) -> tuple[float, float]:
    """Two numbers of seconds as written -> start and end.

    Raises UserError, which begins with ``where``, unless they are numbers and 0 <= start < end.
    """
    try:
        first, last = float(start), float(end)
    except ValueError:
        hint = "; write decimals with a point" if "," in start + end else ""
        raise UserError(f"{where}: start {start!r}, end {end!r}, but numbers of seconds are expected{hint}") from None
    if not (0 <= first < last and math.isfinite(last)):
        raise UserError(f"{where}: start {first:g}, end {last:g}, but 0 <= start < end is expected")
    return first, last
