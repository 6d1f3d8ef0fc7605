"""The selections that OrthoSoftmax is compared with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.selection.base import Selection
from espnet_todm.selection.known import SELECTIONS, find_selection
from espnet_todm.selection.random_nested import RandomNested
from espnet_todm.selection.top_k import TopK, relaxed_top_k
from espnet_todm.selection.uniform import Uniform
from espnet_todm.selection.units import make_units
from espnet_todm.selection.zero_out import ZeroOut
from espnet_todm.sizes import fit_budget
from tests.conftest import conformer

TABLE = conformer(num_blocks=4, conv_norm="layer_norm").component_table()
UNITS = make_units(TABLE, "component", "params")
SHARES = {"small": 0.5, "middle": 0.7}
STEPS = 90


@pytest.mark.parametrize("name", SELECTIONS)
def test_an_order_holds_every_unit_once(name: str) -> None:
    kind = find_selection(name)
    chooser = kind(UNITS, SHARES, STEPS)
    assert sorted(chooser.order(0)) == list(range(len(UNITS)))
    assert chooser.order(0) == kind(UNITS, SHARES, STEPS).order(0)


@settings(max_examples=25, deadline=None)
@given(scores=st.lists(st.floats(-3, 3), min_size=4, max_size=12), data=st.data())
def test_relaxed_top_k_spends_at_most_k_and_prefers_high_scores(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores) - 1))
    weights = relaxed_top_k(torch.tensor(scores, dtype=torch.float64), k)
    assert 0.5 * k < float(weights.sum()) <= k + 1e-6  # what would pass one whole unit is cut off
    assert bool(((weights >= 0) & (weights <= 1)).all())
    ranked = weights[torch.argsort(torch.tensor(scores), stable=True)]
    assert bool((ranked.diff() >= -1e-6).all())


def test_relaxed_top_k_of_clear_scores_is_the_hard_one() -> None:
    scores = torch.tensor([5.0, -5.0, 4.0, -4.0], dtype=torch.float64) * 20
    torch.testing.assert_close(relaxed_top_k(scores, 2), torch.tensor([1.0, 0, 1, 0], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: relaxed_top_k(x, 2), torch.randn(5, dtype=torch.float64).requires_grad_())


def test_top_k_falls_from_all_units_to_those_of_the_smallest_size() -> None:
    chooser = TopK(UNITS, SHARES, STEPS, decrements=8)
    ks = [chooser.k(step) for step in range(STEPS)]
    smallest = UNITS.nested(chooser.order(0), SHARES)["small"]
    assert ks[0] == len(UNITS) and ks[-1] == len(smallest.components)
    assert sorted(ks, reverse=True) == ks and len(set(ks)) == 9
    assert float(chooser.weights("small", STEPS - 1).detach().sum()) == pytest.approx(ks[-1], abs=0.1)


def test_zero_out_closes_the_lowest_gates_until_the_smallest_size_is_left() -> None:
    chooser = ZeroOut(UNITS, SHARES, STEPS, iterations=4)
    with torch.no_grad():
        chooser.logits.add_(torch.arange(len(UNITS)) * 0.01)  # the last units are the most valuable
    open_cost = []
    for step in range(STEPS):
        chooser.before_step(step)
        open_cost.append(float(UNITS.costs[chooser.closed_at == 0].sum()) + UNITS.rest)
    assert sorted(open_cost, reverse=True) == open_cost and len(set(open_cost)) == 5
    assert open_cost[-1] <= SHARES["small"] * UNITS.total < open_cost[-1] + 2 * float(UNITS.costs.max())
    assert chooser.order(0)[0] == len(UNITS) - 1  # the highest gate first
    assert chooser.closed_at[chooser.order(0)[-1]] == 1  # closed first, hence last
    assert float(chooser.penalty("small", STEPS).detach()) < 1.0


def test_zero_out_does_not_close_twice_after_a_resume() -> None:
    chooser = ZeroOut(UNITS, SHARES, STEPS, iterations=4)
    chooser.before_step(STEPS // 2)
    again = ZeroOut(UNITS, SHARES, STEPS, iterations=4)
    again.load_state_dict(chooser.state_dict())
    again.before_step(STEPS // 2)
    assert torch.equal(again.closed_at, chooser.closed_at)


def test_random_orders_follow_the_seed() -> None:
    assert RandomNested(UNITS, SHARES, 0, seed=1).order(0) != RandomNested(UNITS, SHARES, 0, seed=2).order(0)


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_uniform_sets_are_those_of_plain_shares(share: float) -> None:
    chosen: Subnet = UNITS.nested(Uniform(UNITS, SHARES, 0).order(0), {"size": share})["size"]
    assert chosen.components == fit_budget("size", TABLE, "params", share * UNITS.total).components


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (TopK, {"decrements": 0}, ["decrements", "0"]),
        (TopK, {"temperature": 0}, ["temperature"]),
        (ZeroOut, {"iterations": 0.5}, ["iterations", "0.5"]),
        (ZeroOut, {"closed": 11.0}, ["closed", "11.0"]),
    ],
)
def test_wrong_options_are_named(kind: type[Selection], options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        kind(UNITS, SHARES, STEPS, **options)
    assert all(word in str(error.value) for word in words)
