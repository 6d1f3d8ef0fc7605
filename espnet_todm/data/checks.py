"""Stage 4: the audio check and the length filter. It judges by stage 3's measures and opens no audio, so it takes
seconds.

Output ``<features>/<split>/``: ``feats.scp`` (or ``wav.scp``), ``text``, ``utt2spk``, ``spk2utt``, ``utt2dur``,
``utt2num_frames`` (or ``utt2num_samples``) of the utterances that passed, and ``quarantine.tsv`` (utterance, reason,
detail) of those that did not.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from espnet_todm.data.audio import Measure
from espnet_todm.data.features import read_measures
from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.data.sorted_tables import Lookup, write_tables
from espnet_todm.data.tables import PROBLEMS, Problem, Problems, read_problems
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike, read_json
from espnet_todm.util.stage_marker import MARKER, atomic_stage, fingerprint

QUARANTINE = "quarantine.tsv"
LENGTH_REASONS = ("too-short", "too-long")  # chosen by the user's limits; all other reasons are faults of the data
_SILENT_PEAK = 1e-4  # about 3 steps of 16 bits
_LOUDEST_PEAK = 4.0  # of full scale: more are no samples in [-1, 1] but, say, 16-bit numbers stored as floats


@dataclass(frozen=True)
class Shortest:
    """What makes one frame of an encoder's output: at least so many frames of features, or samples of audio."""

    frames: int = 1
    samples: int = 1


ANY_LENGTH = Shortest()


@dataclass(frozen=True)
class Limits:
    """What passes.

    min_seconds, max_seconds: lengths to train on; evaluation sets keep every length.
    max_clipped: largest share of samples at full scale; evaluation sets keep clipped utterances.
    max_quarantine_share: the stage stops when a larger share of a split's utterances has faults (lengths do not count).
    """

    sampling_rate: int = SAMPLING_RATE
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    max_clipped: float = 0.01
    max_quarantine_share: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds < self.max_seconds:
            raise UserError(f"min_seconds, max_seconds: {self.min_seconds:g}, {self.max_seconds:g}, but 0 <= min < max")
        for key in ("max_clipped", "max_quarantine_share"):
            check_number(key, getattr(self, key), at_least=0, at_most=1)


def judge(measure: Measure, limits: Limits, evaluation: bool = False, shortest: int = 1) -> Optional[Problem]:
    """Why an utterance does not pass, or None when it does. Evaluation sets lose only what cannot be decoded at all.

    shortest: what the encoder needs for one frame, in what ``measure.frames`` counts. Less is decoded as an empty text.
    """
    found = _fault(measure, limits) or (None if evaluation else _unfit(measure, limits, shortest))
    return Problem(measure.utterance, *found) if found else None


def filter_split(
    data: PathLike,
    features: PathLike,
    output: PathLike,
    limits: Limits,
    evaluation: bool = False,
    needed: Shortest = ANY_LENGTH,
) -> Path:
    """Stage 4 for one split: ``data`` from stage 1 or 2, ``features`` (``<features>/org/<split>``) from stage 3 ->
    ``output``. ``needed``: what the encoder that will be trained needs for one frame.

    Raises UserError, naming the share and the most frequent reasons, when too many utterances have faults or none is
    left.
    """
    inputs = [fingerprint(data), fingerprint(features)]
    raw = read_json(Path(features) / MARKER)["feats_type"] == "raw"
    shortest = 1 if evaluation else needed.samples if raw else needed.frames
    options = {"stage": "filter", **asdict(limits), "evaluation": evaluation, "shortest": shortest, "input": inputs}
    target = Path(output)
    with atomic_stage(target, options) as folder:
        if folder is None:
            return target
        problems, passed = Problems(folder), SortedRows(folder)  # rows: utterance, where its features are, their length
        for known in read_problems(Path(data) / PROBLEMS):
            problems.add(known)
        for measure in tqdm(read_measures(features), desc=target.name, unit="utt", disable=None):
            problem = judge(measure, limits, evaluation, shortest)
            if problem is None:
                passed.add(measure.utterance, str(measure.where), str(measure.frames))
            else:
                problems.add(problem)
        _check_share(target.name, problems, len(passed), limits)
        _report(target, problems, len(passed), evaluation)
        _write(folder, Path(data), raw, passed)
        problems.write(folder / QUARANTINE)
    return target


def _fault(measure: Measure, limits: Limits) -> Optional[tuple[str, str]]:
    """Faults that leave nothing to decode."""
    if measure.error is not None:
        return "unreadable", measure.error
    if measure.sampling_rate != limits.sampling_rate:
        return "wrong-rate", f"{measure.sampling_rate} Hz, but {limits.sampling_rate} Hz is expected"
    if measure.channels != 1:
        return "not-mono", f"{measure.channels} channels, but 1 is expected"
    if measure.peak < _SILENT_PEAK:
        return "empty", f"silent: the largest sample is {measure.peak:g} of full scale"
    if measure.peak > _LOUDEST_PEAK:
        return "over-scale", f"the largest sample is {measure.peak:g} times full scale; divide by what full scale was"
    if measure.where is None:
        return "empty", f"{measure.seconds:.4f} s, less than one frame"
    return None


def _unfit(measure: Measure, limits: Limits, shortest: int) -> Optional[tuple[str, str]]:
    """What should not be trained on."""
    if measure.clipped > limits.max_clipped:
        return "clipped", f"{measure.clipped:.2%} of samples at full scale, at most {limits.max_clipped:.2%} allowed"
    if measure.seconds < limits.min_seconds:
        return "too-short", f"{measure.seconds:.2f} s, at least {limits.min_seconds:g} s needed"
    if measure.frames < shortest:
        return "too-short", f"{measure.seconds:.2f} s, a length of {measure.frames}, but the encoder needs {shortest}"
    if measure.seconds > limits.max_seconds:
        return "too-long", f"{measure.seconds:.2f} s, at most {limits.max_seconds:g} s allowed"
    return None


def _check_share(name: str, problems: Problems, passed: int, limits: Limits) -> None:
    faults = Counter({reason: n for reason, n in problems.reasons.items() if reason not in LENGTH_REASONS})
    found, total = sum(faults.values()), len(problems) + passed
    if found and found > limits.max_quarantine_share * total:
        first = problems.first[next(iter(faults))]
        raise UserError(
            f"{name}: {found} of {total} utterances ({found / total:.1%}) have faults, "
            f"but max_quarantine_share is {limits.max_quarantine_share:.1%}: {_in_words(faults)}; "
            f"first: {first.utterance}: {first.detail}"
        )
    if not passed:
        raise UserError(
            f"{name}: no utterance of {total} passed: {_in_words(problems.reasons) or 'the split is empty'}"
        )


def _in_words(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _report(target: Path, problems: Problems, passed: int, evaluation: bool) -> None:
    logging.info("%s: %d utterances passed", target, passed)
    if not len(problems):
        return
    if evaluation:
        logging.warning(
            "%s IS NOT WHOLE: %s; error rates will be over %d of %d utterances and not compare with others' (see %s)",
            target.name,
            _in_words(problems.reasons),
            passed,
            passed + len(problems),
            target / QUARANTINE,
        )
    else:
        logging.info(
            "%s: %d quarantined: %s (see %s)", target, len(problems), _in_words(problems.reasons), target / QUARANTINE
        )


def _write(folder: Path, data: Path, raw: bool, passed: SortedRows) -> None:
    columns = ("text", "utt2dur", "utt2spk")
    tables = [Lookup(data / column) for column in columns]
    names = ("wav.scp", "utt2num_samples") if raw else ("feats.scp", "utt2num_frames")
    rows = ((name, where, length, *(table[name] for table in tables)) for name, where, length in passed)
    write_tables(folder, (*names, *columns), rows)
