"""The LibriSpeech layout: ``<corpus>/<folder>/<speaker>/<chapter>/<utterance>.flac`` with ``*.trans.txt`` beside them.

Any folder of this layout will do, whatever its name. Source: V. Panayotov et al., "Librispeech: an ASR corpus based on
public domain audio books", ICASSP 2015.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from espnet_todm.errors import UserError
from espnet_todm.files import PathLike

_NAMES_SHOWN = 12
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg")

# Names for several folders together, as the recipes of the field use them; a folder of that name goes first.
PRESETS = {
    "train-460": ("train-clean-100", "train-clean-360"),
    "train-960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
}


@dataclass(frozen=True)
class Utterance:
    """One utterance as the folder lists it: ``audio`` is None without a file, ``text`` None without a transcript."""

    name: str
    speaker: str
    audio: Optional[Path]
    text: Optional[str]


@dataclass
class Listing:
    """The utterances of a split, sorted by name, and a digest of the files (paths and sizes) they were listed from."""

    utterances: list[Utterance]
    digest: str


@dataclass
class _Files:
    audio: dict[str, Path] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    sizes: list[str] = field(default_factory=list)


def parse_split(spec: str, corpus: PathLike = "") -> tuple[str, tuple[str, ...]]:
    """A folder of ``corpus`` ("dev-clean"), a preset ("train-960") or "name=folder+folder" -> (name, folders).

    Raises UserError for anything else that cannot be a folder's name.
    """
    name, equals, folders = spec.partition("=")
    if equals:
        parts = tuple(folders.split("+"))
    elif any((Path(corpus) / inner / name).is_dir() for inner in ("", "LibriSpeech")):
        parts = (name,)
    else:
        parts = PRESETS.get(name, (name,))
    if not name or "/" in name or name.startswith(".") or not all(parts):
        raise UserError(f"split: {spec!r}, but a folder's name or name=folder+folder is expected")
    return name, parts


def corpus_folder(corpus: PathLike) -> Path:
    """The folder that holds the splits: ``corpus`` itself or the ``LibriSpeech`` in it. UserError when there is
    none."""
    given = Path(corpus)
    if not str(corpus) or not given.is_dir():
        raise UserError(f"corpus: {str(corpus)!r} is no folder; give the one that holds LibriSpeech/")
    inner = given / "LibriSpeech"
    return inner if inner.is_dir() else given


def download(corpus: PathLike, folders: Sequence[str]) -> None:
    """Download and unpack official parts of LibriSpeech into ``corpus``/LibriSpeech; parts that are there stay.

    Raises UserError for names that LibriSpeech does not have.
    """
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech

    official = LIBRISPEECH + MINI_LIBRISPEECH
    for folder in folders:
        if folder not in official:
            raise UserError(f"download: there is no part {folder!r} of LibriSpeech; there are {', '.join(official)}")
    if not str(corpus):
        raise UserError("corpus: give the folder to download into")
    download_librispeech(corpus, dataset_parts=[f for f in folders if not (Path(corpus) / "LibriSpeech" / f).is_dir()])


def list_utterances(corpus: Path, folders: Sequence[str]) -> Listing:
    """List the utterances of ``folders`` of ``corpus`` without opening the audio.

    Raises UserError for a missing folder, one without audio or without any transcript, and for an utterance listed
    twice.
    """
    files = _Files()
    for folder in folders:
        _scan(corpus, folder, files)
    names = sorted(files.audio.keys() | files.texts.keys())
    utterances = [
        Utterance(name, files.speakers[name], files.audio.get(name), files.texts.get(name) or None) for name in names
    ]
    return Listing(utterances, hashlib.sha256("\n".join(sorted(files.sizes)).encode()).hexdigest())


def _scan(corpus: Path, folder: str, files: _Files) -> None:
    top = corpus / folder
    if not top.is_dir():
        there = sorted(entry.name for entry in corpus.iterdir() if entry.is_dir())
        shown = ", ".join(there[:_NAMES_SHOWN]) + (", ..." if len(there) > _NAMES_SHOWN else "")
        raise UserError(f"{folder}: no such folder in {corpus}; there are: {shown or 'none'}")
    audio, texts = len(files.audio), len(files.texts)
    for here, inner, names in os.walk(top):
        inner.sort()
        for name in sorted(names):
            path = Path(here) / name
            if name.endswith(".trans.txt"):
                _read_transcripts(path, top, files)
            elif path.suffix in AUDIO_SUFFIXES:
                _once(files.audio, path.stem, path, path)
                files.speakers[path.stem] = _speaker(path.stem, path, top)
            else:
                continue
            files.sizes.append(f"{path.relative_to(corpus)} {path.stat().st_size}")
    if len(files.audio) == audio:
        raise UserError(f"{top}: no audio in it ({', '.join(AUDIO_SUFFIXES)}); an empty split cannot be used")
    if len(files.texts) == texts:
        raise UserError(f"{top}: no transcripts in it; LibriSpeech has a <speaker>-<chapter>.trans.txt in each chapter")


def _read_transcripts(path: Path, top: Path, files: _Files) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    for line in lines:
        name, _, text = line.strip().partition(" ")
        if name:
            _once(files.texts, name, " ".join(text.split()), path)
            files.speakers.setdefault(name, _speaker(name, path, top))


def _once(table: dict, key: str, value: object, path: Path) -> None:
    if key in table:
        raise UserError(f"{path}: utterance {key} is listed twice in this split, but names must be unique")
    table[key] = value


def _speaker(name: str, path: Path, top: Path) -> str:
    """The speaker's folder; in flatter layouts what stands before the first hyphen."""
    parts = path.relative_to(top).parts
    return parts[0] if len(parts) >= 3 else name.split("-")[0]
