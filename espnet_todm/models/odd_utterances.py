"""Handling of utterances that are too short for one output frame, and of empty texts, within a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_todm.models.transducer import error_rate
from espnet_todm.util.host import values


def lengthen(features: Tensor, frames: int) -> Tensor:
    """Pad features (B, T, F) with zeros to (B, max(T, frames), F). The lengths do not change."""
    lacking = frames - features.size(1)
    return F.pad(features, (0, 0, 0, lacking)) if lacking > 0 else features


def heard(lengths: Tensor) -> Optional[Tensor]:
    """Output lengths (B,) -> indices of the utterances with at least one frame, (n,) int64; None if all have one."""
    some = [index for index, length in enumerate(values(lengths)) if length > 0]
    return None if len(some) == len(lengths) else torch.tensor(some, device=lengths.device)


class ErrorRates:
    """Wraps ESPnet's error calculator, which divides by the length of the references. Empty references give NaN.

    NaN and not None: the ranks of a training average their statistics by name, so each must report the same names.
    ESPnet's reporter leaves out NaN.
    """

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator

    def __getattr__(self, name: str) -> Any:
        if name == "calculator":  # copy.deepcopy reads attributes before it sets them
            raise AttributeError(name)
        return getattr(self.calculator, name)

    def of_transducer(self, found: Sequence[Sequence[int]], text: Tensor, text_lengths: Tensor) -> dict[str, float]:
        """Decoded labels of each utterance, text (B, U) -> ``cer_transducer`` (over labels) and ``wer_transducer``, each if
        ESPnet's options request it."""
        rates = {}
        if self.report_cer:
            rate = error_rate(found, text, text_lengths)
            rates["cer_transducer"] = math.nan if rate is None else rate
        if self.report_wer:
            said = [row[:length] for row, length in zip(values(text), values(text_lengths))]
            try:
                rates["wer_transducer"] = float(
                    self.calculate_wer(*([*map(self._spell, side)] for side in (found, said)))
                )
            except ZeroDivisionError:
                rates["wer_transducer"] = math.nan
        return rates

    def _spell(self, labels: Sequence[int]) -> str:
        """Labels -> text, as in ESPnet's error rates of transducers."""
        return "".join(self.char_list[label] for label in labels).replace(self.space, " ").replace(self.blank, "")

    def __call__(self, hypotheses: Tensor, references: Tensor, is_ctc: bool = False) -> Any:
        """Labels (B, U) -> character and word error rate, each None if not requested. With ``is_ctc``: frame labels
        (B, T) -> character error rate."""
        try:
            rates = self.calculator(hypotheses, references, is_ctc=is_ctc)
        except ZeroDivisionError:
            return tuple(math.nan if asked else None for asked in (self.report_cer, self.report_wer))
        return math.nan if rates is None else rates
