"""Every kind of step on the mock device: the CPU's results, no mixed devices, and the committed numbers of launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mock.cases import CASES, OPTIMIZERS, Case, cpu_outcome, mock_outcome
from tests.mock_device import Counts

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
    same(got.parameters, expected.parameters)
    within_budget(name, counts)


def same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same tensors, up to rounding; None in the same places."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert got[key] is None, key
        else:
            torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-7, equal_nan=True, msg=key)


def within_budget(name: str, counts: Counts) -> None:
    limits = BUDGETS[name]
    assert counts.total[1] <= limits[1], f"{counts.total[1]} synchronisations, {limits[1]} allowed: {counts.syncs}"
    assert counts.total[0] <= SLACK * limits[0], f"{counts.total[0]} launches, {limits[0]} allowed: {counts.launches}"


def test_every_budget_has_its_case() -> None:
    assert BUDGETS.keys() == CASES.keys() | OPTIMIZERS.keys()
