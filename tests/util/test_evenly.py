"""A few of many, evenly spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.util.evenly import evenly


@given(st.integers(0, 200), st.one_of(st.none(), st.integers(1, 250)))
def test_it_takes_what_is_asked_in_order(total: int, limit: int | None) -> None:
    taken = list(evenly(range(total), limit))
    assert taken == sorted(set(taken))
    assert len(taken) == (total if limit is None else min(total, limit))
    steps = np.diff(taken)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_none_is_not_a_part() -> None:
    with pytest.raises(UserError, match="utterances: 0"):
        evenly([1], 0)
