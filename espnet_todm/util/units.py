"""Amounts of parameters, FLOPs and seconds, and sampling rates, as people write them: 800K, 10M, 1.2G, 0.02, 16k."""

from __future__ import annotations

import math
from typing import Union

from espnet_todm.errors import UserError

UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}


def parse_amount(text: str) -> float:
    """ "10M" -> 1e7. Suffixes K, M, G, or none. Raises UserError."""
    amount = _number(text)
    if not amount > 0:
        raise UserError(f"budget {text!r} is no amount; write 800K, 10M, 1.2G or 0.02")
    return amount


def _number(text: str) -> float:
    """The number that ``text`` writes with a suffix K, M or G, or none; NaN for anything else."""
    number, unit = (text[:-1], UNITS[text[-1].upper()]) if text[-1:].upper() in UNITS else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        return math.nan


def format_amount(amount: float) -> str:
    """1.2345e7 -> "12.35M", as :func:`parse_amount` reads it: four digits, and the largest unit that leaves at least one."""
    for suffix, unit in reversed(UNITS.items()):
        if float(f"{amount:.4g}") >= unit:
            return f"{amount / unit:.4g}{suffix}"
    return f"{amount:.4g}"


def parse_hertz(key: str, rate: Union[int, str]) -> int:
    """A sampling rate in Hz as ESPnet's front ends take it: 16000 or "16k". Raises UserError, naming ``key``."""
    hertz = _number(rate) if isinstance(rate, str) else rate
    if not 0 < hertz < math.inf:
        raise UserError(f"{key}: {rate!r}; needed: a number of Hz, such as 16000 or 16k")
    return int(hertz)
