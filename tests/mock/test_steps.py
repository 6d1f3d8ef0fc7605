"""Every kind of step on the mock device: the CPU's results, no mixed devices, and the committed numbers of launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from espnet_todm.optim.scaled_adam_step import _dots
from tests.mock.cases import CASES, OPTIMIZERS, Case, cpu_outcome, mock_outcome
from tests.mock_device import DEVICE, Counts, MockDevice, on_cpu

BUDGETS: dict[str, list[int]] = json.loads(Path(__file__).with_name("budgets.json").read_text(encoding="utf-8"))
SLACK = 1.02  # of launches: versions of torch and ESPnet differ


@pytest.mark.parametrize("name", CASES)
def test_results_of_a_step_are_those_of_the_cpu(name: str) -> None:
    expected, (got, counts) = cpu_outcome(CASES[name]), mock_outcome(CASES[name])
    same(got.gradients, expected.gradients)
    same(got.stats, expected.stats)
    within_budget(name, counts)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_results_of_an_optimizer_are_those_of_the_cpu(name: str) -> None:
    expected, (got, counts) = cpu_outcome(Case(), OPTIMIZERS[name]), mock_outcome(Case(), OPTIMIZERS[name])
    # ScaledAdam sums in another order on a GPU. A tensor before a norm has size gradients near 0, whose sign is rounding.
    same(got.parameters, expected.parameters, 2e-3 if name.startswith("ScaledAdam") else 0.0)
    within_budget(name, counts)


def test_size_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    shapes = [(3, 5), (15,), (2, 3, 4), (24,), (7,), (5, 3)]
    values, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    expected = _dots(values, gradients)
    with MockDevice() as device:
        there = [[tensor.to(DEVICE) for tensor in tensors] for tensors in (values, gradients)]
        device.counts.clear()
        got = _dots(*there)
    assert device.counts.total == (7, 0)  # the products, and two for each number of elements
    for ours, dot, value, gradient in zip(got, expected, values, gradients):
        assert abs(on_cpu(ours) - dot) <= 1e-6 * value.norm() * gradient.norm()


def test_host_hardly_waits_in_a_training_step() -> None:
    """Budgets of all training steps but those in which ESPnet's modules read values: its SpecAugment and its decoder."""
    for name, case in CASES.items():
        if case.training and not case.specaug and (case.predictor or case.ctc_weight == 1):
            assert BUDGETS[name][1] <= (8 if case.predictor else 4), name


@pytest.mark.parametrize("name", ["kd, CTC/attention", "kd, split_batch", "kd, pruned RNN-T", "two_stage, first stage"])
def test_synchronisations_do_not_grow_with_the_batch(name: str) -> None:
    few, more = (mock_outcome(CASES[name], utterances=utterances)[1].total[1] for utterances in (3, 9))
    assert few == more <= BUDGETS[name][1]


@pytest.mark.parametrize("name", ["kd, RNN-T", "kd, pruned RNN-T"])
def test_launches_do_not_grow_with_the_batch(name: str) -> None:
    few, more = (mock_outcome(CASES[name], utterances=utterances)[1].total[0] for utterances in (3, 9))
    assert few == more


def same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 0.0) -> None:
    """The same tensors, by default bit by bit; None in the same places."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert got[key] is None, key
        else:
            torch.testing.assert_close(got[key], value, rtol=0, atol=tolerance, equal_nan=True, msg=key)


def within_budget(name: str, counts: Counts) -> None:
    limits = BUDGETS[name]
    assert counts.total[1] <= limits[1], f"{counts.total[1]} synchronisations, {limits[1]} allowed: {counts.syncs}"
    assert counts.total[0] <= SLACK * limits[0], f"{counts.total[0]} launches, {limits[0]} allowed: {counts.launches}"


def test_every_budget_has_its_case() -> None:
    assert BUDGETS.keys() == CASES.keys() | OPTIMIZERS.keys()
