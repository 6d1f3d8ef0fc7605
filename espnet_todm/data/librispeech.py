"""The LibriSpeech layout: ``<corpus>/<folder>/<speaker>/<chapter>/<utterance>.flac`` with ``*.trans.txt`` beside them.

Any folder of this layout will do, whatever its name. Source: V. Panayotov et al., "Librispeech: an ASR corpus based on
public domain audio books", ICASSP 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from espnet_todm.data import listing
from espnet_todm.data.listing import Listing, Utterance, Utterances, files_below, split_folder
from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_lines, split_key

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg")
TRANSCRIPTS = ".trans.txt"
_AUDIO, _TEXT = "audio", "text"  # kinds of rows, in this order

# Names for several folders together, as the recipes of the field use them; a folder of that name goes first.
PRESETS = {
    "train-460": ("train-clean-100", "train-clean-360"),
    "train-960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
}


class _Files:
    """What is found in the folders. A row is (utterance, kind, number, file, speaker, words of a transcript)."""

    def __init__(self) -> None:
        self.rows, self.sizes = SortedRows(), SortedRows()
        self.found = {_AUDIO: 0, _TEXT: 0}

    def add(self, name: str, kind: str, path: Path, speaker: str, text: str = "") -> None:
        self.found[kind] += 1
        self.rows.add(name, kind, f"{len(self.rows):012d}", str(path), speaker, text)

    def by_name(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        return ((name, list(rows)) for name, rows in groupby(self.rows, key=itemgetter(0)))

    def count(self) -> int:
        """How many names there are. Raises UserError when one has two files or two transcripts."""
        twice: list[tuple[str, str, str]] = []
        count = 0
        for name, rows in self.by_name():
            count += 1
            twice += [(row[2], row[3], name) for before, row in zip(rows, rows[1:]) if row[1] == before[1]]
            twice = sorted(twice)[:1]  # the one that was found first is told
        if twice:
            _, path, name = twice[0]
            raise UserError(f"{path}: utterance {name} is listed twice in this split, but names must be unique")
        return count

    def utterances(self) -> Iterator[Utterance]:
        for name, rows in self.by_name():
            kinds = {row[1]: row for row in rows}
            audio = Path(kinds[_AUDIO][3]) if _AUDIO in kinds else None
            text = kinds[_TEXT][5] if _TEXT in kinds else ""
            yield Utterance(name, rows[0][4], audio, text or None)  # audio comes first, and its folder is the speaker


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
    return Listing(Utterances(files.utterances, files.count()), listing.digest(files.sizes))


def _scan(corpus: Path, folder: str, files: _Files) -> None:
    top = split_folder(corpus, folder)
    before = dict(files.found)
    for path in files_below(top, (TRANSCRIPTS, *AUDIO_SUFFIXES)):
        if path.name.lower().endswith(TRANSCRIPTS):
            for name, text in map(split_key, read_lines(path)):
                if name:
                    files.add(name, _TEXT, path, _speaker(name, path, top), text)
        else:
            files.add(path.stem, _AUDIO, path, _speaker(path.stem, path, top))
        files.sizes.add(f"{path.relative_to(corpus)} {path.stat().st_size}")
    if files.found[_AUDIO] == before[_AUDIO]:
        raise UserError(f"{top}: no audio in it ({', '.join(AUDIO_SUFFIXES)}); an empty split cannot be used")
    if files.found[_TEXT] == before[_TEXT]:
        raise UserError(f"{top}: no transcripts in it; LibriSpeech has a <speaker>-<chapter>.trans.txt in each chapter")


def _speaker(name: str, path: Path, top: Path) -> str:
    """The speaker's folder; in flatter layouts what stands before the first hyphen. Tables want it without spaces."""
    parts = path.relative_to(top).parts
    return "_".join((parts[0] if len(parts) >= 3 else name.split("-")[0]).split())
