"""The LibriSpeech layout: ``<corpus>/<folder>/<speaker>/<chapter>/<utterance>.flac`` with ``*.trans.txt`` beside them.

Any folder of this layout will do, whatever its name. Source: V. Panayotov et al., "Librispeech: an ASR corpus based on
public domain audio books", ICASSP 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_todm.data import listing
from espnet_todm.data.listing import Listing, Utterance, files_below, split_folder
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_lines, split_key

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg")
TRANSCRIPTS = ".trans.txt"

# Names for several folders together, as the recipes of the field use them; a folder of that name goes first.
PRESETS = {
    "train-460": ("train-clean-100", "train-clean-360"),
    "train-960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
}


@dataclass
class _Files:
    audio: dict[str, Path] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    sizes: list[str] = field(default_factory=list)


def parse_split(spec: str, corpus: PathLike = "") -> tuple[str, tuple[str, ...]]:
    """A folder of ``corpus`` ("dev-clean"), a preset ("train-960") or "name=folder+folder" -> (name, folders)."""
    return listing.parse_split(spec, [Path(corpus), Path(corpus) / "LibriSpeech"], PRESETS)


def corpus_folder(corpus: PathLike) -> Path:
    """The folder that holds the splits: ``corpus`` itself or the ``LibriSpeech`` in it. UserError when there is
    none."""
    return listing.corpus_folder(corpus, "LibriSpeech")


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
    return Listing(utterances, listing.digest(files.sizes))


def _scan(corpus: Path, folder: str, files: _Files) -> None:
    top = split_folder(corpus, folder)
    audio, texts = len(files.audio), len(files.texts)
    for path in files_below(top, (TRANSCRIPTS, *AUDIO_SUFFIXES)):
        if path.name.lower().endswith(TRANSCRIPTS):
            _read_transcripts(path, top, files)
        else:
            _once(files.audio, path.stem, path, path)
            files.speakers[path.stem] = _speaker(path.stem, path, top)
        files.sizes.append(f"{path.relative_to(corpus)} {path.stat().st_size}")
    if len(files.audio) == audio:
        raise UserError(f"{top}: no audio in it ({', '.join(AUDIO_SUFFIXES)}); an empty split cannot be used")
    if len(files.texts) == texts:
        raise UserError(f"{top}: no transcripts in it; LibriSpeech has a <speaker>-<chapter>.trans.txt in each chapter")


def _read_transcripts(path: Path, top: Path, files: _Files) -> None:
    for line in read_lines(path):
        name, text = split_key(line)
        if name:
            _once(files.texts, name, text, path)
            files.speakers.setdefault(name, _speaker(name, path, top))


def _once(table: dict, key: str, value: object, path: Path) -> None:
    if key in table:
        raise UserError(f"{path}: utterance {key} is listed twice in this split, but names must be unique")
    table[key] = value


def _speaker(name: str, path: Path, top: Path) -> str:
    """The speaker's folder; in flatter layouts what stands before the first hyphen. Tables want it without spaces."""
    parts = path.relative_to(top).parts
    return "_".join((parts[0] if len(parts) >= 3 else name.split("-")[0]).split())
