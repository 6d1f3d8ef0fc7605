"""Error rates of validation, as ESPnet counts them and under its names.

A rate over no reference at all does not exist and is NaN, which ESPnet leaves out of its means; every batch has the same
names, since ranks average them one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable, Optional

from torch import Tensor

from espnet_todm.models.transducer import error_rate

NONE = math.nan


def ctc_error_rate(calculator: Any, logits: Tensor, text: Tensor) -> float:
    """logits (B, T, V), text (B, U) padded with -1 -> characters that the best paths have wrong, over all characters."""
    return _or_none(calculator(logits.argmax(-1).cpu(), text.cpu(), is_ctc=True))


def attention_error_rates(calculator: Any, logits: Tensor, text: Tensor) -> dict[str, float]:
    """logits (B, U + 1, V) behind the right tokens, text (B, U) padded with -1 -> ``cer`` and ``wer``, as configured."""
    hypotheses, references = calculator.convert_to_char(logits.argmax(-1).cpu(), text.cpu())
    return _rates(calculator, ("cer", "wer"), hypotheses, references)


def transducer_error_rates(
    calculator: Any, found: Sequence[Sequence[int]], text: Tensor, text_lengths: Tensor
) -> dict[str, float]:
    """Labels found of each utterance, text (B, U) -> ``cer_transducer``, over labels, and ``wer_transducer``."""
    rates = {}
    if calculator.report_cer:
        rates["cer_transducer"] = _or_none(error_rate(found, text, text_lengths))
    if calculator.report_wer:
        references = [row[:length].tolist() for row, length in zip(text, text_lengths.tolist())]
        texts = ([_text(calculator, labels) for labels in side] for side in (found, references))
        rates["wer_transducer"] = _divided(calculator.calculate_wer, *texts)
    return rates


def _rates(calculator: Any, names: tuple[str, str], hypotheses: list[str], references: list[str]) -> dict[str, float]:
    cer, wer = names
    rates = {}
    if calculator.report_cer:
        rates[cer] = _divided(calculator.calculate_cer, hypotheses, references)
    if calculator.report_wer:
        rates[wer] = _divided(calculator.calculate_wer, hypotheses, references)
    return rates


def _divided(rate: Callable[[list[str], list[str]], float], hypotheses: list[str], references: list[str]) -> float:
    """ESPnet divides by the length of all references, which may be none."""
    try:
        return float(rate(hypotheses, references))
    except ZeroDivisionError:
        return NONE


def _text(calculator: Any, labels: Sequence[int]) -> str:
    tokens = "".join(calculator.char_list[label] for label in labels)
    return tokens.replace(calculator.space, " ").replace(calculator.blank, "")


def _or_none(rate: Optional[float]) -> float:
    return NONE if rate is None else rate
