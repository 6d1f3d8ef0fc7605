"""The one-cycle schedule: the paper's corners, resuming, and what a user does wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler

from espnet_todm.errors import UserError
from espnet_todm.optim.one_cycle import OneCycleLinear
from tests.optim.test_eden import RESTRICTED, advance, sgd

TED2 = {"peak": 4e-4, "start": 4e-6, "end": 4e-5, "final": 1e-8, "up_share": 0.44, "down_share": 0.44}


def test_the_papers_corners() -> None:
    librispeech = OneCycleLinear(sgd(1.0), total_steps=732000)
    for step, rate in ((0, 4e-6), (329400, 4e-4), (658800, 4e-6), (732000, 1e-8), (800000, 1e-8)):
        assert librispeech.rate(step) == pytest.approx(rate), step
    assert librispeech.rate(164700) == pytest.approx((4e-6 + 4e-4) / 2)
    ted2 = OneCycleLinear(sgd(1.0), total_steps=375000, **TED2)
    for step, rate in ((0, 4e-6), (165000, 4e-4), (330000, 4e-5), (352500, (4e-5 + 1e-8) / 2), (375000, 1e-8)):
        assert ted2.rate(step) == pytest.approx(rate), step


def test_every_update_moves_along_the_line() -> None:
    scheduler = OneCycleLinear(
        sgd(0.7, 0.1), total_steps=10, peak=1.0, start=0.1, final=0.0, up_share=0.4, down_share=0.4
    )
    rates = [scheduler.optimizer.param_groups[0]["lr"], *(advance(scheduler, 1) for _ in range(11))]
    assert rates == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 0.775, 0.55, 0.325, 0.1, 0.05, 0.0, 0.0])
    assert scheduler.optimizer.param_groups[1]["lr"] == scheduler.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(("up", "down"), [(0, 1), (1, 0), (0, 0), (0.5, 0.5)])
def test_lines_may_be_missing(up: float, down: float) -> None:
    scheduler = OneCycleLinear(sgd(1.0), total_steps=4, peak=1.0, start=0.5, final=0.25, up_share=up, down_share=down)
    assert all(0.25 <= scheduler.rate(step) <= 1.0 for step in range(6))
    assert scheduler.rate(4) == 0.25


def test_resuming_goes_on_as_before() -> None:
    straight, first, second = (OneCycleLinear(sgd(1.0), total_steps=30, **TED2) for _ in range(3))
    for scheduler in (straight, first):
        advance(scheduler, 10)
    file = io.BytesIO()
    torch.save({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=RESTRICTED)
    second.optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["scheduler"])
    for _ in range(25):
        assert advance(second, 1) == advance(straight, 1)


def test_espnet_steps_it_after_each_update() -> None:
    assert issubclass(OneCycleLinear, AbsBatchStepScheduler)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_steps", 0),
        ("total_steps", 1.5),
        ("total_steps", None),
        ("peak", 0),
        ("start", 1.0),
        ("end", -1),
        ("final", "1e-8"),
        ("up_share", 2),
    ],
)
def test_a_bad_option_is_named_with_its_value(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"one_cycle_linear: {key}: {value!r} is not allowed"):
        OneCycleLinear(sgd(1.0), **{"total_steps": 10, key: value})


def test_shares_fit_into_the_run() -> None:
    with pytest.raises(UserError, match=r"up_share: 0\.6 and down_share: 0\.5 are together more than 1"):
        OneCycleLinear(sgd(1.0), total_steps=10, up_share=0.6, down_share=0.5)
