"""Data folders: lhotse cuts and the Kaldi tables that ESPnet reads, written together in one pass.

A data folder holds ``cuts.jsonl.gz`` (lhotse), ``text``, ``utt2spk``, ``spk2utt``, ``utt2dur`` (seconds), ``wav.scp``
(absent when the audio is changed on reading, e.g. speed perturbed), Kaldi's ``segments`` (where utterances are parts of
recordings; ``wav.scp`` then names recordings) and ``problems.tsv`` (utterances that have no cut).
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Optional, Union

from lhotse import CutSet
from lhotse.cut import MonoCut
from tqdm import tqdm

from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.data.sorted_tables import open_table, write_tables
from espnet_todm.errors import UserError, damage_told
from espnet_todm.util.files import PathLike, atomic_path, encode, read_lines

CUTS = "cuts.jsonl.gz"
DAMAGED = "remove its folder and run stage 1 (data) again"  # what to do
PROBLEMS = "problems.tsv"


@dataclass(frozen=True)
class Problem:
    """Why an utterance cannot be used: ``reason`` is one of a few words, ``detail`` a line."""

    utterance: str
    reason: str
    detail: str


@dataclass
class Totals:
    """How much a data folder holds."""

    utterances: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.utterances} utterances, {self.seconds / 3600:.2f} hours"


def is_whole(cut: MonoCut) -> bool:
    """Whether a cut is its recording from beginning to end."""
    return bool(cut.start == 0 and cut.duration == cut.recording.duration)


def cut_row(cut: MonoCut) -> tuple[Any, ...]:
    """What ``DataFolder.add`` wants to know of a cut with one supervision."""
    said, recording = cut.supervisions[0], cut.recording
    audio, changed = recording.sources[0].source, bool(recording.transforms)
    times = cut.start, cut.end, cut.duration
    return cut.id, said.text, said.speaker, *times, recording.id, str(audio), changed, is_whole(cut)


class DataFolder:
    """The tables and the problems of a data folder, from rows in any order and with memory for few of them."""

    def __init__(self, folder: Path) -> None:
        self.totals, self.problems = Totals(), Problems(folder)
        self._folder, self._rows, self._audio = folder, SortedRows(folder), SortedRows(folder)
        self._unchanged, self._parts = True, False
        self._before = ("", "")

    def add(
        self,
        name: str,
        text: str,
        speaker: str,
        start: float,
        end: float,
        duration: float,
        recording: str,
        source: str,
        changed: bool,
        whole: bool,
    ) -> None:
        """Take an utterance. start, end, duration: seconds; changed: its audio is in no file; whole: it is all of it."""
        self._unchanged = self._unchanged and not changed
        self._parts = self._parts or not whole
        self._rows.add(name, text, speaker, f"{duration:.4f}", f"{recording} {start:.4f} {end:.4f}")
        if self._unchanged and self._before != (recording, source):  # cuts of a recording come one after another
            self._audio.add(recording, f"{self.totals.utterances:012d}", source)
            self._before = recording, source
        self.totals.utterances += 1
        self.totals.seconds += duration

    def write(self) -> None:
        """Write the tables. Raises UserError for names that come twice or cannot stand in a table."""
        names = ["text", "utt2spk", "utt2dur"]
        write_tables(self._folder, [*names, "segments"] if self._unchanged and self._parts else names, self._rows)
        if self._unchanged:
            with open_table(self._folder / "wav.scp") as write:
                for recording, group in groupby(self._audio, key=itemgetter(0)):
                    *_, (_, _, source) = group  # the last one that was named
                    write(recording, source)


def write_data_folder(folder: Path, found: Iterable[Union[MonoCut, Problem]], name: str) -> DataFolder:
    """Stream cuts (one supervision each) into a data folder, with a progress bar called ``name``.

    The caller makes the folder appear as a whole, and writes the problems.
    """
    data = DataFolder(folder)
    with CutSet.open_writer(folder / CUTS) as writer:
        for one in tqdm(found, desc=name, unit="utt", disable=None):
            if isinstance(one, Problem):
                data.problems.add(one)
            else:
                writer.write(one)
                data.add(*cut_row(one))
    data.write()
    return data


def read_cuts(folder: PathLike) -> Iterator[MonoCut]:
    """The cuts of a data folder, read lazily. Raises UserError as ``cuts_of`` and ``iterate_cuts``."""
    return iterate_cuts(cuts_of(folder))


def cuts_of(folder: PathLike) -> Path:
    """The file with a data folder's cuts. Raises UserError when there is none."""
    path = Path(folder) / CUTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; run stage 1 (data) first")
    return path


def iterate_cuts(path: PathLike) -> Iterator[MonoCut]:
    """The cuts of a file, one at a time.

    Raises UserError when the file is damaged, and where a cut's audio is no file: lhotse would run a command or load a page.
    """
    with damage_told(path, DAMAGED):
        for cut in CutSet.from_jsonl_lazy(path):
            for source in cut.recording.sources:
                if source.type != "file":
                    raise UserError(f"{path}: {cut.id}: its audio is a {source.type} ({source.source}), not a file")
            yield cut


class Problems:
    """Problems in any number, with memory for few: how many of each reason, the first of each, and all of them to write."""

    def __init__(self, folder: Optional[PathLike] = None) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, Problem] = {}
        self._rows = SortedRows(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, problem: Problem) -> None:
        self.reasons[problem.reason] += 1
        self.first.setdefault(problem.reason, problem)
        self._rows.add(problem.utterance, problem.reason, re.sub(r"\s+", " ", problem.detail))

    def write(self, path: PathLike) -> None:
        """Write tab-separated lines (utterance, reason, detail) under a heading, sorted."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for row in chain([("utterance", "reason", "detail")], self._rows):
                file.write(encode(path, "\t".join(row) + "\n"))


def cut_lines(path: PathLike) -> Iterator[str]:
    """The lines of a data folder's cuts, with their ends. Raises UserError when the file is damaged."""
    with damage_told(path, DAMAGED), gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from lines


def write_problems(path: PathLike, problems: Iterable[Problem]) -> None:
    """Write problems as ``Problems.write``."""
    collected = Problems(Path(path).parent)
    for problem in problems:
        collected.add(problem)
    collected.write(path)


def read_problems(path: PathLike) -> Iterator[Problem]:
    """Read what ``write_problems`` wrote, one at a time; no file means no problems."""
    lines = islice(read_lines(path), 1, None) if Path(path).is_file() else ()
    return (Problem(*line.split("\t", 2)) for line in lines)
