"""The bootstrap over seeds and utterances together."""

from __future__ import annotations

import numpy as np
import pytest

from espnet_todm.scoring.significance import error_rate_interval, paired_difference
from espnet_todm.scoring.twins import Rate, TwinDifference, mean_rate, twin_difference

LENGTHS = np.full(300, 10)


def drawn(rate: float, seeds: int, spread: float = 0.0, number: int = 0) -> np.ndarray:
    """Errors (seeds, 300); the rates of the seeds deviate from ``rate`` by ``spread``."""
    generator = np.random.default_rng(number)
    rates = np.clip(rate + spread * generator.standard_normal(seeds), 0.01, 0.99)
    return np.stack([generator.binomial(10, one, size=300) for one in rates])


def test_one_seed_gives_the_bootstrap_over_utterances() -> None:
    errors, twin = drawn(0.2, 1), drawn(0.25, 1, number=1)
    assert mean_rate(errors, LENGTHS)[1:] == pytest.approx(error_rate_interval(errors[0], LENGTHS))
    found, plain = twin_difference(errors, twin, LENGTHS).points, paired_difference(errors[0], twin[0], LENGTHS)
    assert found == pytest.approx(plain[:3])


def test_seeds_widen_the_interval_and_results_repeat() -> None:
    errors, same = drawn(0.2, 3, spread=0.05), np.repeat(drawn(0.2, 1), 3, axis=0)
    wide, narrow = mean_rate(errors, LENGTHS), mean_rate(same, LENGTHS)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    assert narrow.high - narrow.low == pytest.approx(np.diff(error_rate_interval(same[0], LENGTHS))[0])
    assert mean_rate(errors, LENGTHS) == wide


def test_the_spread_of_few_seeds_is_that_of_their_mean() -> None:
    """Without noise of utterances the draws have the variance s^2 / S with the unbiased s^2."""
    errors = np.repeat([[1], [2], [4]], 300, axis=1)  # rates of 10, 20 and 40%
    low, high = mean_rate(errors, LENGTHS, samples=20000)[1:]
    deviation = np.std([10, 20, 40], ddof=1) / np.sqrt(3)
    assert (high - low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.15)


def test_seeds_and_utterances_are_paired() -> None:
    """Seeds far apart and utterances of different difficulty hide no constant difference."""
    twin = np.random.default_rng(5).integers(2, 5, size=(1, 300)) + np.array([[0], [2], [4]])
    found = twin_difference(twin - 1, twin, LENGTHS)
    assert found.points == pytest.approx((-10, -10, -10))
    assert found.verdict == "better"
    assert twin_difference(twin, twin - 1, LENGTHS).verdict == "worse"


def test_percent_is_relative_to_the_twin() -> None:
    errors, twin = drawn(0.2, 3), drawn(0.25, 3, number=1)
    found = twin_difference(errors, twin, LENGTHS)
    assert found.percent.rate == pytest.approx(100 * (errors.sum() / twin.sum() - 1))
    assert found.percent.low < found.percent.rate < found.percent.high
    none = twin_difference(errors, np.zeros_like(twin), LENGTHS)
    assert np.isnan(none.percent.rate) and none.points.rate > 0


def test_verdicts_follow_the_interval() -> None:
    def verdict(low: float, high: float) -> str:
        return TwinDifference(Rate((low + high) / 2, low, high), Rate(0, 0, 0)).verdict

    assert verdict(-2, -0.1) == "better"
    assert verdict(0.1, 2) == "worse"
    assert verdict(-2.04, 1) == "equal within ±2.0"
    assert verdict(0, 0) == "equal within ±0.0"


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="must be"):
        twin_difference(np.zeros((2, 3)), np.zeros((3, 3)), np.ones(3))
