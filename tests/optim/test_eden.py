"""Eden and Eden2: values worked out by hand, epochs, groups, resuming, and ESPnet's kind of scheduler."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler, AbsEpochStepScheduler

from espnet_todm.errors import UserError
from espnet_todm.optim.eden import Eden, Eden2

# torch 1.13 can read no Python float in this mode, of no optimizer.
RESTRICTED = not torch.__version__.startswith("1.")


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def advance(scheduler: Any, updates: int) -> float:
    for _ in range(updates):
        scheduler.optimizer.step()
        scheduler.step()
    return scheduler.optimizer.param_groups[0]["lr"]


def test_eden_by_hand() -> None:
    scheduler = Eden(sgd(1.0), lr_batches=4, lr_epochs=2, warmup_batches=10, warmup_start=0.5)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    # b = 3: (25 / 16)^(-1/4) = 0.8944272; w = 0.5 + 0.5 * 0.3 = 0.65
    assert advance(scheduler, 3) == pytest.approx(0.8944272 * 0.65)
    # b = 4: 2^(-1/4) = 0.8408964; w = 0.7
    assert advance(scheduler, 1) == pytest.approx(0.8408964 * 0.7)
    # b = 16: 17^(-1/4) = 0.4924791; the warm-up is over
    assert advance(scheduler, 12) == pytest.approx(0.4924791)
    # e = 2: times 2^(-1/4), at once and in the updates that follow
    scheduler.set_epoch(2)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.4924791 * 0.8408964)
    assert scheduler.get_last_lr() == pytest.approx([0.4924791 * 0.8408964])
    # b = 20: 26^(-1/4) = 0.4428501
    assert advance(scheduler, 4) == pytest.approx(0.4428501 * 0.8408964)


def test_eden2_by_hand() -> None:
    scheduler = Eden2(sgd(0.2), lr_batches=4, warmup_batches=2, warmup_start=0.1)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    # b = 1: (17 / 16)^(-1/2) = 0.9701425; w = 0.55
    assert advance(scheduler, 1) == pytest.approx(0.2 * 0.9701425 * 0.55)
    # b = 3: (25 / 16)^(-1/2) = 0.8
    assert advance(scheduler, 2) == pytest.approx(0.16)


def test_defaults() -> None:
    scheduler = Eden(sgd(0.045))
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.0225)
    assert (scheduler.lr_batches, scheduler.lr_epochs, scheduler.warmup_batches) == (7500, 3.5, 500)
    assert Eden(sgd(1.0), warmup_batches=0).optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Eden, Eden2])
def test_groups_keep_their_proportion(kind: Any) -> None:
    scheduler = kind(sgd(1.0, 0.1, 0.01), lr_batches=5)
    advance(scheduler, 20)
    rates = [group["lr"] for group in scheduler.optimizer.param_groups]
    assert rates == pytest.approx([rates[0], rates[0] * 0.1, rates[0] * 0.01])


@pytest.mark.parametrize("kind", [Eden, Eden2])
def test_resuming_goes_on_as_before(kind: Any) -> None:
    def build() -> Any:
        return kind(sgd(1.0), lr_batches=5, warmup_batches=20)

    straight, first, second = build(), build(), build()
    for scheduler in (straight, first):
        advance(scheduler, 10)
        if kind is Eden:
            scheduler.set_epoch(3)
    file = io.BytesIO()
    torch.save({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=RESTRICTED)
    second.optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["scheduler"])
    for _ in range(20):
        assert advance(second, 1) == advance(straight, 1)


@pytest.mark.parametrize("kind", [Eden, Eden2])
def test_espnet_steps_it_after_each_update(kind: Any) -> None:
    assert issubclass(kind, AbsBatchStepScheduler)
    assert not issubclass(kind, AbsEpochStepScheduler)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr_batches", 0), ("lr_epochs", -1), ("warmup_batches", -1), ("warmup_start", 1.5), ("warmup_start", "0.1")],
)
def test_a_bad_option_is_named_with_its_value(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"eden: {key}: {value!r} is not allowed"):
        Eden(sgd(1.0), **{key: value})


@pytest.mark.parametrize("epoch", [-1, 1.5, None, True])
def test_a_bad_epoch_is_refused(epoch: Any) -> None:
    with pytest.raises(UserError, match=r"eden: epoch: .* whole number >= 0"):
        Eden(sgd(1.0)).set_epoch(epoch)
