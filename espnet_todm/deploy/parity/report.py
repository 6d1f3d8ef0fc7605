"""The report of the parity gate: one table of the compared steps with their differences and limits."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

from espnet_todm.errors import UserError
from espnet_todm.util.markdown import markdown_table

FORMAT = "espnet_todm.parity/1"
JSON, PAGE = "parity.json", "parity.md"
FEWEST_WORDS = 3  # that a limit of the word error rate should allow


@dataclass(frozen=True)
class Limits:
    """The largest allowed absolute difference of each step.

    Args:
        features: of log energies. Usual differences are 5e-4 or less; a wrong window or scale gives 0.1 or more.
        encoder: of the encoder's outputs.
        posteriors: of probabilities.
        wer_points: allowed increase of the word error rate of int8 and fp16 over PyTorch's, in percentage points; None: no
            limit. (With fp32, transcripts must be identical.)
    """

    features: float = 1e-2
    encoder: float = 1e-3
    posteriors: float = 1e-3
    wer_points: Optional[float] = None

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value is not None and not value >= 0:
                raise UserError(f"limit of {key}: {value!r} must be at least 0")


def check_wer_points(points: Optional[float], precisions: Sequence[str], words: Optional[int]) -> None:
    """Check a limit of word errors before any work. Warns when it is less than FEWEST_WORDS of the words to measure it on.

    words: number of words of the speech; None: nothing is measured on speech.

    Raises UserError when the limit is below 0, no precision has a limit, or there is no speech.
    """
    if points is None:
        return
    Limits(wer_points=points)
    if not {*precisions} - {"fp32"}:
        raise UserError("max_wer_points: is a limit for int8 and fp16; --precision has none of them")
    if words is None:
        raise UserError("max_wer_points: is measured on speech, which --no_parity leaves out; allowed: one of the two")
    if points * words < 100 * FEWEST_WORDS:
        logging.warning(
            "max_wer_points: %g points are %.1f of the %d words given, so chance decides; give more --utterances",
            points,
            points * words / 100,
            words,
        )


@dataclass(frozen=True)
class Step:
    """One comparison.

    name: features, encoder, posteriors, transcripts or WER. of, against: the compared runtimes. difference: the largest one,
    or the number of different transcripts, or points of WER; infinite if shapes differ. limit: None if the difference is
    only reported. utterance: that of the largest difference. detail: more about that utterance.
    """

    name: str
    of: str
    against: str
    difference: float
    limit: Optional[float]
    utterance: str = ""
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.limit is None or self.difference <= self.limit

    def complaint(self) -> str:
        """The error message, on one line."""
        where = f" at utterance {self.utterance}" if self.utterance else ""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"the {self.name} of {self.of} and of {self.against} part{where}: they differ by {_number(self.difference)},"
            f" allowed: {_number(self.limit)}{detail}"
        )


@dataclass(frozen=True)
class Rate:
    """Word error rate of a runtime in percent, and the number of transcripts that differ from PyTorch's."""

    of: str
    wer: float
    changed: int


@dataclass(frozen=True)
class ParityReport:
    """All steps of one model in the order of computation, and the word error rates of the runtimes."""

    model: str
    utterances: int
    words: int
    seconds: float
    steps: Sequence[Step]
    rates: Sequence[Rate]
    versions: dict[str, str]
    cpu: str

    @property
    def first_fault(self) -> Optional[Step]:
        """The first step above its limit, if any."""
        return next((step for step in self.steps if not step.holds), None)

    def to_json(self) -> dict[str, Any]:
        """The content of parity.json. An infinite difference becomes null."""
        steps: list[dict[str, Any]] = [{**asdict(step), "holds": step.holds} for step in self.steps]
        for step in steps:
            step["difference"] = step["difference"] if math.isfinite(step["difference"]) else None
        return {"format": FORMAT, **asdict(self), "steps": steps, "holds": self.first_fault is None}

    def markdown(self) -> str:
        """The content of parity.md: heading, verdict, and two tables."""
        fault = self.first_fault
        verdict = "All steps hold." if fault is None else f"**Parted**: {fault.complaint()}."
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = [[step.name, step.of, step.against, *_cells(step)] for step in self.steps]
        rates = [[rate.of, f"{rate.wer:.2f}", str(rate.changed)] for rate in self.rates]
        return (
            f"## Parity of {self.model}\n\n{self.utterances} utterances, {self.words} words, {self.seconds:.0f} s of"
            f" speech; {versions}; {self.cpu}. {verdict}\n\n"
            + markdown_table(["step", "of", "against", "largest difference", "allowed", "where", ""], rows)
            + "\n"
            + markdown_table(["runtime", "WER (%)", "transcripts that differ from PyTorch's"], rates)
        )


def _cells(step: Step) -> list[str]:
    limit = "any" if step.limit is None else _number(step.limit)
    return [_number(step.difference), limit, step.utterance, "" if step.holds else "PARTED"]


def _number(value: Optional[float]) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value if math.isfinite(value) else 0) else f"{value:.2g}"
