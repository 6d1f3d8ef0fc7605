"""Utterances too short for one frame of the encoder's output, and texts without words: in a batch they do no harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

from torch import Tensor
from torch.nn import functional as F

from espnet_todm.models.transducer import error_rate


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
        if name == "calculator":  # asked for before there is one, by who makes a copy
            raise AttributeError(name)
        return getattr(self.calculator, name)

    def of_transducer(self, found: Sequence[Sequence[int]], text: Tensor, text_lengths: Tensor) -> dict[str, float]:
        """Labels found of each utterance, text (B, U) -> ``cer_transducer``, over labels, and ``wer_transducer``: those that
        are asked for."""
        rates = {}
        if self.report_cer:
            rate = error_rate(found, text, text_lengths)
            rates["cer_transducer"] = math.nan if rate is None else rate
        if self.report_wer:
            said = [row[:length].tolist() for row, length in zip(text, text_lengths.tolist())]
            try:
                rates["wer_transducer"] = float(
                    self.calculate_wer(*([*map(self._spell, side)] for side in (found, said)))
                )
            except ZeroDivisionError:
                rates["wer_transducer"] = math.nan
        return rates

    def _spell(self, labels: Sequence[int]) -> str:
        """As ESPnet spells what its transducers say."""
        return "".join(self.char_list[label] for label in labels).replace(self.space, " ").replace(self.blank, "")

    def __call__(self, hypotheses: Tensor, references: Tensor, is_ctc: bool = False) -> Any:
        """Labels (B, U) -> character and word error rate, None where it is not asked for; with ``is_ctc`` (B, T) frames'
        labels -> character error rate."""
        try:
            rates = self.calculator(hypotheses, references, is_ctc=is_ctc)
        except ZeroDivisionError:
            return tuple(math.nan if asked else None for asked in (self.report_cer, self.report_wer))
        return math.nan if rates is None else rates
