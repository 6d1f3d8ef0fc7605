"""Data folders: lhotse cuts and the Kaldi tables that ESPnet reads, written together in one pass.

A data folder holds ``cuts.jsonl.gz`` (lhotse), ``text``, ``utt2spk``, ``spk2utt``, ``utt2dur`` (seconds), ``wav.scp``
(absent when the audio is changed on reading, e.g. speed perturbed), Kaldi's ``segments`` (where utterances are parts of
recordings; ``wav.scp`` then names recordings) and ``problems.tsv`` (utterances that have no cut).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import MonoCut
from tqdm import tqdm

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, damage_told, read_lines, write_table, write_text

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


def write_data_folder(folder: Path, cuts: Iterable[MonoCut], name: str) -> Totals:
    """Stream ``cuts`` (one supervision each) into a data folder, with a progress bar called ``name``.

    The caller makes the folder appear as a whole.
    """
    totals, audio, unchanged = Totals(), {}, True
    segments: dict[str, str] = {}
    parts = False
    texts: dict[str, str] = {}
    speakers: dict[str, str] = {}
    durations: dict[str, str] = {}
    with CutSet.open_writer(folder / CUTS) as writer:
        for cut in tqdm(cuts, desc=name, unit="utt", disable=None):
            writer.write(cut)
            supervision = cut.supervisions[0]
            texts[cut.id], speakers[cut.id] = supervision.text, supervision.speaker
            durations[cut.id] = f"{cut.duration:.4f}"
            recording = cut.recording
            unchanged = unchanged and not recording.transforms
            parts = parts or not is_whole(cut)
            audio[recording.id] = recording.sources[0].source
            segments[cut.id] = f"{recording.id} {cut.start:.4f} {cut.end:.4f}"
            totals.utterances += 1
            totals.seconds += cut.duration
    write_table(folder / "text", texts)
    write_speakers(folder, speakers)
    write_table(folder / "utt2dur", durations)
    if unchanged:
        write_table(folder / "wav.scp", audio)
    if unchanged and parts:
        write_table(folder / "segments", segments)
    return totals


def write_speakers(folder: PathLike, speakers: dict[str, str]) -> None:
    """Write ``utt2spk`` and ``spk2utt`` from utterance -> speaker."""
    utterances: dict[str, list[str]] = {}
    for name in sorted(speakers):
        utterances.setdefault(speakers[name], []).append(name)
    write_table(Path(folder) / "utt2spk", speakers)
    write_table(Path(folder) / "spk2utt", {speaker: " ".join(names) for speaker, names in utterances.items()})


def read_cuts(folder: PathLike) -> Iterator[MonoCut]:
    """The cuts of a data folder, read lazily. Raises UserError when there are none, and as ``iterate_cuts``."""
    path = Path(folder) / CUTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; run stage 1 (data) first")
    return iterate_cuts(path)


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


def write_problems(path: PathLike, problems: Iterable[Problem]) -> None:
    """Write problems as tab-separated lines (utterance, reason, detail) under a heading."""
    rows = sorted((one.utterance, one.reason, re.sub(r"\s+", " ", one.detail)) for one in problems)
    write_text(path, "".join("\t".join(row) + "\n" for row in [("utterance", "reason", "detail"), *rows]))


def read_problems(path: PathLike) -> list[Problem]:
    """Read what ``write_problems`` wrote; no file means no problems."""
    source = Path(path)
    if not source.is_file():
        return []
    return [Problem(*line.split("\t", 2)) for line in list(read_lines(source))[1:]]
