"""Utterances too short for one frame of the encoder's output, and texts without words: in a batch they do no harm."""

from __future__ import annotations

import math
from typing import Any, Optional

from torch import Tensor
from torch.nn import functional as F


def lengthen(features: Tensor, frames: int) -> Tensor:
    """Features (B, T, F) -> (B, at least ``frames``, F), padded with zeros. Lengths tell what is padding, as always."""
    lacking = frames - features.size(1)
    return F.pad(features, (0, 0, 0, lacking)) if lacking > 0 else features


def heard(lengths: Tensor) -> Optional[Tensor]:
    """Output frames (B,) -> places of the utterances that have some, (n,) int64; None where all have."""
    some = lengths > 0
    return None if bool(some.all()) else some.nonzero().flatten()


class ErrorRates:
    """ESPnet's error calculator, which divides by the length of the references: without any word a rate is NaN.

    Not None: the processes of a training average what they report by its name, and each must report the same names.
    ESPnet's reporter leaves out NaN.
    """

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.calculator, name)

    def __call__(self, hypotheses: Tensor, references: Tensor, is_ctc: bool = False) -> Any:
        """Labels (B, U) -> character and word error rate, None where it is not asked for; with ``is_ctc`` (B, T) frames'
        labels -> character error rate."""
        try:
            rates = self.calculator(hypotheses, references, is_ctc=is_ctc)
        except ZeroDivisionError:
            return tuple(math.nan if asked else None for asked in (self.report_cer, self.report_wer))
        return math.nan if rates is None else rates
