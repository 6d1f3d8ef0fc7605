"""Weights of the sizes' losses in a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.trainers.loss_weights import LossWeights
from tests.tiny_model import batch, run, trained_by

NAMES = ("full", "middle", "small")
SUBNETS = [Subnet(name, frozenset()) for name in NAMES]


def weights(size_weights: Any = None, moving: Any = None) -> LossWeights:
    return LossWeights(NAMES, size_weights, moving)


def test_without_options_every_loss_has_the_same_weight() -> None:
    assert weights().of(SUBNETS, 3, None) == [1 / 3] * 3


def test_weights_are_relative_to_the_subnets_of_the_step() -> None:
    some = weights({"small": 2, "full": 1})
    assert some.of(SUBNETS, 0, None) == [0.25, 0.25, 0.5]
    assert some.of([SUBNETS[0], SUBNETS[2]], 0, None) == [1 / 3, 2 / 3]
    assert some.of(SUBNETS[:1], 0, None) == [1.0]


@pytest.mark.parametrize(("step", "share"), [(0, 0.3), (30, 0.3), (50, 0.5), (90, 0.7)])
def test_a_moving_weight_follows_the_run_within_its_limits(step: int, share: float) -> None:
    moving = weights({"small": 3}, [0.3, 0.7])
    assert moving.of(SUBNETS, step, 100) == pytest.approx([1 - share, share / 4, 3 * share / 4])
    assert moving.of(SUBNETS[:1], step, 100) == [1.0]


def test_a_step_weighs_its_losses() -> None:
    model = trained_by(kd_weight=0, size_weights={"small": 3})
    loss, stats = run(model, batch())
    expected = (stats["loss_full"] + stats["loss_middle"] + 3 * stats["loss_small"]) / 5
    torch.testing.assert_close(loss.detach(), expected)


def test_a_step_with_a_moving_weight() -> None:
    model, of = trained_by(kd_weight=0, moving_weight=[0.2, 0.7]), batch()
    model.subnet_trainer.prepare(model, 5, TrainingSetup(planned_steps=10))
    loss, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=5)
    below = (stats["loss_middle"] + stats["loss_small"]) / 2
    torch.testing.assert_close(loss.detach().sum(), (0.5 * stats["loss_full"] + 0.5 * below).squeeze())
    with pytest.raises(UserError, match="moving_weight: the length of the run is not known beforehand"):
        run(model, of)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size_weights": {"tiny": 1}}, ["size_weights", "'tiny' is no size", "full, middle, small"]),
        ({"size_weights": {"small": 0}}, ["size_weights.small: 0", "> 0"]),
        ({"size_weights": {"small": "much"}}, ["size_weights.small: 'much'", "number"]),
        ({"size_weights": [1, 2]}, ["size_weights", "[1, 2]", "full, middle, small"]),
        ({"moving": 0.5}, ["moving_weight", "0.5", "[low, high]"]),
        ({"moving": [0.3]}, ["moving_weight", "[low, high]"]),
        ({"moving": [0.7, 0.3]}, ["moving_weight: 0.3", ">= 0.7"]),
        ({"moving": [0, 0]}, ["moving_weight: 0", "> 0"]),
        ({"moving": [0.3, 1]}, ["moving_weight: 1", "< 1"]),
        ({"moving": [0.3, 0.7], "size_weights": {"full": 2}}, ["size_weights.full", "moving_weight"]),
    ],
)
def test_wrong_values_end_in_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        weights(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
