"""What a corpus reader hands over: the utterances of a split as they are listed on disk, before any audio is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from espnet_todm.errors import UserError
from espnet_todm.files import PathLike

_NAMES_SHOWN = 12


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


@dataclass
class Listing:
    """The utterances of a split, sorted by name, and a digest of the files (paths and sizes) they were listed from."""

    utterances: list[Utterance]
    digest: str


Reader = Callable[[Path, Sequence[str]], Listing]
"""(corpus, folders) -> their utterances together."""


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines in any order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


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
