"""Confidence of error rates: bootstrap over utterances (Bisani and Ney, ICASSP 2004)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SAMPLES = 2000
_BLOCK = 1 << 22
"""Largest number of drawn utterances in memory."""


class Difference(NamedTuple):
    """Error rate of one system minus another's on the same utterances, in percentage points."""

    points: float
    low: float
    high: float
    p_value: float


def error_rate_interval(
    errors: np.ndarray, lengths: np.ndarray, confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the error rate, in percent; it always includes the rate itself.

    errors, lengths: (U,) errors and reference units of each utterance; the sum of all lengths must not be 0.
    """
    rate = 100.0 * errors.sum() / lengths.sum()
    rates = _rates(np.stack([errors]), lengths, samples, seed)[0]
    low, high = interval(rates, confidence)
    return min(low, rate), max(high, rate)


def paired_difference(
    errors: np.ndarray,
    other_errors: np.ndarray,
    lengths: np.ndarray,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Difference:
    """Bootstrap of rate(errors) - rate(other_errors), where both systems use the same drawn utterances.

    errors, other_errors, lengths: (U,), per utterance. The p-value is two-sided: twice the share of draws in
    which the difference is 0 or has the other sign; it is never 0. Raises ValueError on shapes that do not match.
    """
    if not errors.shape == other_errors.shape == lengths.shape:
        raise ValueError(f"shapes {errors.shape}, {other_errors.shape} and {lengths.shape} must be one (U,)")
    points = 100.0 * (errors.sum() - other_errors.sum()) / lengths.sum()
    rates = _rates(np.stack([errors, other_errors]), lengths, samples, seed)
    differences = rates[0] - rates[1]
    low, high = interval(differences, confidence)
    contrary = (int((differences * np.sign(points) <= 0).sum()) + 1) / (len(differences) + 1)
    return Difference(float(points), min(low, points), max(high, points), min(1.0, 2.0 * contrary))


def _rates(errors: np.ndarray, lengths: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """errors (S, U) of S systems. Returns (S, samples), the error rates of the drawn sets in percent."""
    found = []
    for drawn in draws(len(lengths), samples, seed):
        units = lengths[drawn].sum(1)
        found.append(100.0 * errors[:, drawn].sum(2)[:, units > 0] / units[units > 0])
    return np.concatenate(found, axis=1)


def draws(utterances: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (n, U) of indices: each row has U utterances drawn with replacement; ``samples`` rows in total."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // utterances)
    for start in range(0, samples, rows):
        yield generator.integers(utterances, size=(min(rows, samples - start), utterances), dtype=np.int32)


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentiles of drawn values between which ``confidence`` of them lie."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)
