"""OrthoSoftmax's selection: budgets, nesting, penalty; the defects 3 and 4 of its reference code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import CRITERIA, Subnet
from espnet_todm.errors import UserError
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.selection.ortho_softmax import OrthoSoftmax, orthogonality
from espnet_todm.selection.units import Units, check_distinct, check_shares, make_units
from tests.conftest import conformer, synthetic_latency

ENCODER = conformer(num_blocks=4, conv_norm="layer_norm")
TABLE = synthetic_latency(ENCODER).apply(ENCODER.component_table())
SHARES = {"small": 0.5, "middle": 0.7}
criteria = st.sampled_from(CRITERIA)
granularities = st.sampled_from(["component", "layer"])


def selection(criterion: str = "params", granularity: str = "component", **options) -> OrthoSoftmax:
    return OrthoSoftmax(make_units(TABLE, granularity, criterion), SHARES, 100, **options)


def next_unit(units: Units, order: list[int], subnet: Subnet) -> Subnet:
    """The subnet with the first unit of the order that it lacks."""
    kept = next(n for n in range(len(order)) if not set(units.keys[order[n]]) <= subnet.components)
    return units.subnet("next", order[: kept + 1])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("granularity", ["component", "layer"])
def test_units_cost_what_the_full_set_costs(criterion: str, granularity: str) -> None:
    units = make_units(TABLE, granularity, criterion)
    assert units.rest + float(units.costs.sum()) == pytest.approx(TABLE.cost(TABLE.full()).by(criterion))
    assert sorted(key for keys in units.keys for key in keys) == sorted(TABLE.by_key)


def test_layers_are_whole_modules() -> None:
    assert len(make_units(TABLE, "layer", "params")) == 4 * 4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), criterion=criteria, granularity=granularities)
def test_sizes_are_nested_and_within_one_unit_of_their_budget(seed: int, criterion: str, granularity: str) -> None:
    chooser = selection(criterion, granularity)
    with torch.no_grad():
        chooser.scores.copy_(torch.randn(chooser.scores.shape, generator=torch.Generator().manual_seed(seed)))
    order = chooser.order(0)
    sizes = chooser.units.nested(order, SHARES)
    assert sizes["small"].components < sizes["middle"].components
    for name, subnet in sizes.items():
        budget = SHARES[name] * chooser.units.total
        larger = next_unit(chooser.units, order, subnet)
        assert TABLE.cost(subnet).by(criterion) <= budget < TABLE.cost(larger).by(criterion)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_defect_3_rows_that_want_one_component_still_get_different_ones(seed: int) -> None:
    chooser = selection()
    with torch.no_grad():
        chooser.scores.copy_(torch.randn(chooser.scores.shape, generator=torch.Generator().manual_seed(seed)))
        chooser.scores[:, 0] += 3.0  # every row's favourite
    argmax = chooser.probabilities(0).argmax(1).tolist()
    assert len(set(argmax)) < len(argmax)  # the fault: each row by itself collides
    assert sorted(chooser.order(0)) == list(range(len(chooser.units)))


def test_defect_4_the_tie_is_broken_by_the_seed_not_by_rounding() -> None:
    first, same, other = selection(seed=1), selection(seed=1), selection(seed=2)
    assert torch.equal(first.scores, same.scores)
    assert not torch.equal(first.scores, other.scores)
    assert (first.scores.detach().max(1).values > first.scores.detach().min(1).values).all()
    assert (first.scores.detach() - 1).abs().max() < 0.1  # all rows start nearly even: softmax does not see the one


def test_each_row_that_is_sure_gets_its_component() -> None:
    chooser = selection()
    wanted = torch.randperm(len(chooser.units), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chooser.scores.zero_()
        chooser.scores[torch.arange(len(wanted)), wanted] = 50.0
    rows = chooser.prefix("middle", chooser.probabilities(0))
    assert chooser.order(0)[:rows] == wanted[:rows].tolist()
    weights = chooser.weights("middle", 0)
    torch.testing.assert_close(weights.sort().values[-rows:], torch.ones(rows))
    assert float(chooser.penalty("middle", 100)) == pytest.approx(0.0, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.integers(0, 10**6))
def test_weights_are_gates(seed: int, step: int) -> None:
    chooser = selection(seed=seed % 1000)
    weights = chooser.weights("small", step)
    assert weights.shape == (len(chooser.units),)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    gates = chooser.units.gates(weights)
    assert sum(len(gate) for gate in gates.values()) == len(TABLE.components)


@pytest.mark.parametrize("norm", ["l2_sqrt", "l2", "l1"])
def test_orthogonality_is_zero_only_for_orthonormal_rows_and_has_a_slope_there(norm: str) -> None:
    rows = torch.eye(5, dtype=torch.float64)[:3].clone().requires_grad_()
    distance = orthogonality(rows, norm)
    assert float(distance) == pytest.approx(0.0, abs=1e-5)
    (gradient,) = torch.autograd.grad(distance, rows)
    assert bool(gradient.isfinite().all())
    assert float(orthogonality(torch.full((3, 5), 0.2, dtype=torch.float64), norm)) > 0.5
    assert float(orthogonality(torch.eye(5)[[0, 0, 1]], norm)) > 0.9  # two rows alike
    soft = torch.softmax(torch.randn(3, 5, dtype=torch.float64), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: orthogonality(x, norm), soft)


def test_orthogonality_equals_the_papers_formula() -> None:
    rows = torch.softmax(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), 1)
    gram = rows @ rows.T
    expected = sum(gram[i, j] ** 2 for i in range(4) for j in range(i + 1, 4))
    expected = expected + sum((gram[i, i] - 1) ** 2 for i in range(4))
    assert float(orthogonality(rows, "l2")) == pytest.approx(float(expected))
    assert float(orthogonality(rows, "l2_sqrt")) == pytest.approx(float(expected) ** 0.5)


def test_temperature_falls_to_its_floor() -> None:
    given_decay = selection(temperature_start=2.0, temperature_decay=0.999992)
    assert given_decay.temperature(439200) == pytest.approx(2.0 * 0.999992**439200)
    assert given_decay.temperature(10**9) == 0.01
    assert selection(temperature_end=0.1).temperature(100) == pytest.approx(0.1)


def test_schedules_follow_a_first_stage_whose_length_is_known_only_when_the_run_begins() -> None:
    """As with ``stage1_share``: a decay reckoned when the selection was built would harden every choice in one step."""
    chooser = OrthoSoftmax(make_units(TABLE, "component", "params"), SHARES, steps=0, temperature_end=0.1)
    chooser.steps = 100
    assert chooser.temperature(50) == pytest.approx(0.1**0.5)
    assert chooser.temperature(100) == pytest.approx(0.1)
    known = selection(temperature_end=0.1)
    for step in (0, 1, 50, 100):
        assert float(chooser.penalty("small", step)) == pytest.approx(float(known.penalty("small", step)))


@pytest.mark.parametrize(("schedule", "start", "end"), [("constant", 1.0, 1.0), ("linear", 0.0, 1.0)])
def test_penalty_schedules(schedule: str, start: float, end: float) -> None:
    chooser = selection(penalty_schedule=schedule, temperature_end=1.0)
    full = float(selection(penalty_schedule="constant", temperature_end=1.0).penalty("small", 0))
    assert float(chooser.penalty("small", 0)) == pytest.approx(start * full)
    assert float(chooser.penalty("small", 100)) == pytest.approx(end * full)


def test_a_learned_multiplier_grows_while_rows_overlap() -> None:
    chooser = selection(penalty_schedule="learned")
    optimizer = torch.optim.SGD(chooser.parameters(), lr=0.1)
    before = float(chooser.multiplier)
    for _ in range(3):
        optimizer.zero_grad()
        chooser.penalty("small", 0).backward()
        optimizer.step()
    assert float(chooser.multiplier) > before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalty": "l3"}, ["penalty", "l3", "l2_sqrt"]),
        ({"penalty_schedule": "cosine"}, ["penalty_schedule", "cosine", "linear"]),
        ({"temperature_start": 0}, ["temperature_start", "0"]),
        ({"temperature_decay": 1.5}, ["temperature_decay", "1.5"]),
    ],
)
def test_wrong_options_are_named(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        selection(**options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, ["sizes", "share"]),
        ({"small": {"depth": 0.5}}, ["sizes.small", "fixed set"]),
        ({"small": 0.0}, ["sizes.small", "infeasible", "to below 1"]),
        ({"small": 0.05}, ["sizes.small", "0.05", "infeasible"]),
        ({"small": 1}, ["sizes.small", "infeasible"]),
        ({"small": 0.5, "twin": 0.5}, ["sizes.twin", "small"]),
        ({"small": True}, ["sizes.small", "True"]),
    ],
)
def test_wrong_shares_are_named(sizes: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_shares(sizes, make_units(TABLE, "component", "params"))
    assert all(word in str(error.value) for word in words)


def test_shares_that_come_out_as_one_set_are_refused() -> None:
    chooser = selection(granularity="layer")
    sizes = chooser.units.nested(chooser.order(0), {"small": 0.5, "twin": 0.5001})
    with pytest.raises(UserError, match=r"sizes.twin.*small"):
        check_distinct(sizes)


def test_unknown_granularity_and_criterion_are_named() -> None:
    with pytest.raises(UserError, match=r"granularity: 'block'.*component, layer"):
        make_units(TABLE, "block", "params")
    with pytest.raises(UserError, match=r"criterion: 'size'.*params, flops"):
        make_units(TABLE, "component", "size")
    with pytest.raises(UserError, match=r"criterion: 'latency' has not been measured"):
        make_units(ENCODER.component_table(), "component", "latency")


def test_scaled_adam_moves_the_scores() -> None:
    """From its small random start a row learns to prefer a unit within a short first stage."""
    chooser = selection()
    optimizer = ScaledAdam([chooser.scores], lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        (-chooser.probabilities(0)[0, 3].log()).backward()
        optimizer.step()
    assert chooser.probabilities(0)[0].argmax() == 3 and chooser.probabilities(0)[0, 3] > 0.5
