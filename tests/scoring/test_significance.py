"""Properties of the bootstrap, and agreement with textbook intervals where those hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.scoring.significance import error_rate_interval, paired_difference

UTTERANCES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=30).filter(
    lambda rows: sum(length for _, length in rows) > 0
)


@settings(max_examples=30, deadline=None)
@given(UTTERANCES)
def test_interval_holds_the_rate_and_depends_on_the_seed_alone(rows: list[tuple[int, int]]) -> None:
    errors, lengths = np.array(rows).T
    low, high = error_rate_interval(errors, lengths, samples=200)
    assert 0 <= low <= 100 * errors.sum() / lengths.sum() <= high
    assert error_rate_interval(errors, lengths, samples=200) == (low, high)


def test_interval_shrinks_with_the_number_of_utterances() -> None:
    errors, lengths = np.tile([0, 1, 2, 0, 0], 4), np.full(20, 10)
    widths = []
    for times in (1, 4, 16):
        low, high = error_rate_interval(np.tile(errors, times), np.tile(lengths, times))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.2)


def test_interval_is_the_normal_one_for_many_utterances() -> None:
    errors = np.random.default_rng(1).binomial(10, 0.1, size=2000)
    low, high = error_rate_interval(errors, np.full(2000, 10))
    half = 1.96 * 10 * errors.std() / np.sqrt(2000)
    assert low == pytest.approx(10 * errors.mean() - half, abs=0.08)
    assert high == pytest.approx(10 * errors.mean() + half, abs=0.08)


def test_equal_utterances_leave_no_doubt() -> None:
    assert error_rate_interval(np.full(9, 2), np.full(9, 8)) == (25.0, 25.0)


def test_pairing_finds_what_separate_intervals_hide() -> None:
    draw = np.random.default_rng(2)
    lengths = np.full(400, 10)
    worse = draw.integers(0, 8, size=400)
    better = np.maximum(worse - (draw.random(400) < 0.3), 0)
    low, high = error_rate_interval(worse, lengths)
    other_low, other_high = error_rate_interval(better, lengths)
    assert low < other_high and other_low < high, "the intervals overlap"
    found = paired_difference(worse, better, lengths)
    assert found.points == pytest.approx(100 * (worse.sum() - better.sum()) / lengths.sum())
    assert 0 < found.low < found.points < found.high and found.p_value < 0.01
    back = paired_difference(better, worse, lengths)
    assert back.points == -found.points and back.low == pytest.approx(-found.high)


def test_no_difference_is_not_significant() -> None:
    errors = np.array([0, 1, 2, 3])
    found = paired_difference(errors, errors, np.full(4, 5))
    assert found == (0.0, 0.0, 0.0, 1.0)
    noise = np.random.default_rng(3).integers(0, 3, size=(2, 300))
    assert paired_difference(noise[0], noise[1], np.full(300, 9)).p_value > 0.05


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="must be one"):
        paired_difference(np.zeros(3), np.zeros(4), np.ones(3))
