"""Amounts and sampling rates are read as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.util.units import format_amount, parse_amount, parse_hertz


@given(st.floats(1e-4, 1e14))
def test_what_is_written_is_read(amount: float) -> None:
    assert parse_amount(format_amount(amount)) == pytest.approx(amount, rel=1e-3)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(329_600, "329.6K"), (2.463e6, "2.463M"), (999_999, "1M"), (0.02, "0.02"), (1.2e9, "1.2G"), (10, "10")],
)
def test_the_unit_fits(amount: float, text: str) -> None:
    assert format_amount(amount) == text


@pytest.mark.parametrize("text", ["", "M", "ten", "-1M", "0", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no amount; write 800K, 10M"):
        parse_amount(text)


@pytest.mark.parametrize("rate", [16000, "16000", "16k"])
def test_sampling_rates_are_read_as_espnets_front_ends_take_them(rate: object) -> None:
    assert parse_hertz("frontend_conf.fs", rate) == 16000  # type: ignore[arg-type]


def test_what_is_no_sampling_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"frontend_conf\.fs: 'fast'; needed: a number of Hz"):
        parse_hertz("frontend_conf.fs", "fast")
