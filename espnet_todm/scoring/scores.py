"""Word and character errors of hypotheses, per utterance and in total: Kaldi tables in, score.json out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Optional

import numpy as np

from espnet_todm.errors import UserError
from espnet_todm.scoring.alignment import align, fold_case
from espnet_todm.scoring.significance import error_rate_interval
from espnet_todm.util.checks import check_choice
from espnet_todm.util.files import PathLike, json_rows, read_json, read_table, write_text

FORMAT = "espnet_todm.score/1"
DECODE = "decode"  # folder of the texts; other searches have decode_<search>

UNITS = ("words", "characters")
"""Units of the alignment. A space between two words counts as a character, as in ESPnet's CER."""

OFFICIAL_SIZES: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "librispeech": {
        "dev_clean": ((2703, 54402),),
        "dev_other": ((2864, 50948),),
        "test_clean": ((2620, 52576),),
        "test_other": ((2939, 52343),),
    },
    "tedlium2": {"dev": ((466, 14671), (507, 17783)), "test": ((1155, 27500),)},
}
"""Sentences and words of the official sets. Results on fewer sentences are not comparable with published ones.

TED-LIUM's dev is published in two sizes. ESPnet scores 466 segments (its stage 4 removes long ones from the validation set,
which is also a test set). Kaldi scores all 507.
"""


@dataclass(frozen=True)
class Counts:
    """Totals over sentences; ``words`` is the number of reference units, which may be characters. Rates in percent."""

    sentences: int
    words: int
    correct: int
    substitutions: int
    deletions: int
    insertions: int
    sentence_errors: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def error_rate(self) -> float:
        """Errors per 100 reference units; may exceed 100."""
        return self.percent(self.errors)

    @property
    def sentence_error_rate(self) -> float:
        """Sentences with at least one error, per 100."""
        return 100.0 * self.sentence_errors / self.sentences

    def percent(self, count: int) -> float:
        """``count`` per 100 reference units."""
        return 100.0 * count / self.words


@dataclass(frozen=True)
class Score:
    """Edits of one size on one set.

    utterances: the U names; edits: for each of UNITS an int64 array (U, 4), with the columns of ``alignment.Edits``.
    missing: the number of utterances without a hypothesis; these count as empty. case_sensitive: see
    :func:`score_tables`.
    """

    split: str
    size: str
    utterances: tuple[str, ...]
    edits: dict[str, np.ndarray]
    missing: int = 0
    case_sensitive: bool = False

    def lengths(self, unit: str = "words") -> np.ndarray:
        """(U,) reference units of each utterance."""
        return self.edits[unit][:, :3].sum(1)

    def errors(self, unit: str = "words") -> np.ndarray:
        """(U,) errors of each utterance."""
        return self.edits[unit][:, 1:].sum(1)

    def total(self, unit: str = "words") -> Counts:
        """Counts over all utterances."""
        correct, substitutions, deletions, insertions = self.edits[unit].sum(0).tolist()
        wrong = int((self.errors(unit) > 0).sum())
        words = correct + substitutions + deletions
        return Counts(len(self.utterances), words, correct, substitutions, deletions, insertions, wrong)

    def interval(self, unit: str = "words") -> tuple[float, float]:
        """Bootstrap 95% interval of the error rate in percent."""
        return error_rate_interval(self.errors(unit), self.lengths(unit))


def score_tables(
    references: dict[str, str],
    hypotheses: dict[str, str],
    split: str = "",
    size: str = "",
    case_sensitive: bool = False,
) -> Score:
    """Score hypotheses (utterance -> words separated by spaces) against the references of the same utterances.

    case_sensitive: whether ``The`` for ``the`` is an error. For sclite it is an error only with ``-s``.

    An utterance without a hypothesis counts as an empty one, with a warning. Raises UserError if the references have
    no words or a hypothesis has no reference.
    """
    name = "/".join(filter(None, (split, size))) or "the test set"
    unknown = [utterance for utterance in hypotheses if utterance not in references]
    if unknown:
        raise UserError(
            f"{name}: hypothesis of utterance {unknown[0]!r} ({len(unknown)} such) has no reference; "
            "hypotheses may only be of utterances in the reference text"
        )
    if not any(text.split() for text in references.values()):
        raise UserError(f"{name}: the references hold {len(references)} utterances and no words; nothing can be scored")
    missing = sum(utterance not in hypotheses for utterance in references)
    if missing:
        logging.warning("%s: %d of %d utterances have no hypothesis and count as empty", name, missing, len(references))
    rows: dict[str, list[Sequence[int]]] = {unit: [] for unit in UNITS}
    for utterance, text in references.items():
        pair = text, hypotheses.get(utterance, "")
        reference, hypothesis = (side.split() for side in (pair if case_sensitive else map(fold_case, pair)))
        rows["words"].append(align(reference, hypothesis))
        rows["characters"].append(align(" ".join(reference), " ".join(hypothesis)))
    edits = {unit: np.array(rows[unit], dtype=np.int64) for unit in UNITS}
    return Score(split, size, tuple(references), edits, missing, case_sensitive)


def score_experiment(
    experiment: PathLike,
    data: PathLike,
    splits: Iterable[str],
    sizes: Optional[Sequence[str]] = None,
    decode: str = DECODE,
    case_sensitive: bool = False,
) -> list[Score]:
    """Score ``<decode>/<split>/<size>/text`` below ``experiment`` against ``<split>/text`` below ``data``.

    Writes score.json beside each text. sizes: None for every decoded size. decode: ``decode``, or the folder
    of another search; its name, as in ``decode_prefix_lm``, is then added to the name of the split. case_sensitive: see
    :func:`score_tables`; the log reports the difference, if there is one.
    Raises UserError if a set or a size has no hypotheses.
    """
    scores = []
    wanted = list(splits)
    if not wanted:
        raise UserError("sets: none was named; name at least one set to score")
    for split in wanted:
        references = read_table(Path(data) / split / "text")
        decoded = Path(experiment) / decode / split
        names = sorted(path.parent.name for path in decoded.glob("*/text")) if sizes is None else sizes
        if not names:
            raise UserError(f"{decoded}: no <size>/text with hypotheses of set {split!r}; decode it first")
        for size in names:
            hypotheses, label = read_table(decoded / size / "text"), split_label(split, decode)
            score = score_tables(references, hypotheses, label, size, case_sensitive)
            if not case_sensitive:
                _tell_folded(references, hypotheses, score)
            write_score(decoded / size / "score.json", score)
            scores.append(score)
    return scores


def _tell_folded(references: dict[str, str], hypotheses: dict[str, str], score: Score) -> None:
    used = {character for table in (references, hypotheses) for text in table.values() for character in text}
    if used.isdisjoint(ascii_uppercase) or used.isdisjoint(ascii_lowercase):
        return  # all in one case
    strict = (align(text.split(), hypotheses.get(name, "").split()) for name, text in references.items())
    more = sum(sum(edits[1:]) for edits in strict) - score.total().errors
    if more:
        logging.info(
            "%s/%s: case is not looked at, as in sclite without -s; --case_sensitive finds %d more word errors",
            score.split,
            score.size,
            more,
        )


def split_label(split: str, decode: str) -> str:
    """The split's name in tables, followed by the name of the search unless it is the default one."""
    return split if decode == DECODE else f"{split} {decode.removeprefix(DECODE).lstrip('_')}"


def official_size_note(score: Score, corpus: Optional[str] = None) -> Optional[str]:
    """``official_note`` for a score."""
    total = score.total()
    return official_note(score.split.partition(" ")[0], total.sentences, total.words, corpus)


def official_note(split: str, sentences: int, words: int, corpus: Optional[str] = None) -> Optional[str]:
    """One sentence if the set has the name of an official one but another size, else None.

    corpus: a key of OFFICIAL_SIZES. Without it only LibriSpeech's names are known, since no other corpus uses them.
    """
    corpus = corpus or "librispeech"
    check_choice("corpus", corpus, OFFICIAL_SIZES)
    official = OFFICIAL_SIZES[corpus].get(split.replace("-", "_"))
    if official is None or (sentences, words) in official:
        return None
    return (
        f"{split} has {sentences} sentences and {words} words, the official set of this name "
        f"{' or '.join(f'{one[0]} and {one[1]}' for one in official)}: results cannot be compared with published ones"
    )


def write_score(path: PathLike, score: Score) -> None:
    """Write score.json atomically: totals for readers, and the edits of each utterance for statistics."""
    head: dict[str, Any] = {"format": FORMAT, "split": score.split, "size": score.size, "missing": score.missing}
    head["case_sensitive"] = score.case_sensitive
    for unit in UNITS:
        total = score.total(unit)
        head[unit] = {**asdict(total), "error_rate": total.error_rate, "interval_95": list(score.interval(unit))}
    head["utterances"] = {
        name: {unit: score.edits[unit][index].tolist() for unit in UNITS} for index, name in enumerate(score.utterances)
    }
    write_text(path, json_rows(head, depth=2) + "\n")


def read_score(path: PathLike) -> Score:
    """Read the output of ``write_score``. Raises UserError, naming the file, on anything else."""
    stored = read_json(path)
    try:
        if stored["format"] != FORMAT:
            raise UserError(f"{path}: format is {stored['format']!r}, but it must be {FORMAT!r}; score again")
        utterances = stored["utterances"]
        edits = {
            unit: np.array([row[unit] for row in utterances.values()], dtype=np.int64).reshape(-1, 4) for unit in UNITS
        }
        return Score(
            stored["split"],
            stored["size"],
            tuple(utterances),
            edits,
            stored["missing"],
            stored.get("case_sensitive", True),  # files from before this option counted case
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a score.json ({error!r}); score again") from None


def rate_cell(score: Optional[Score]) -> str:
    """Error rate and its 95% interval in percent, "" without a score."""
    if score is None:
        return ""
    low, high = score.interval()
    return f"{score.total().error_rate:.1f} [{low:.1f}, {high:.1f}]"
