"""From what a config says to sets of components: shares, mappings, budgets."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import Component, ComponentTable, Cost, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.sizes import (
    ROUNDING,
    ShareShape,
    fit_budget,
    keep_order,
    module_sizes,
    resolve_size,
    resolve_sizes,
    round_share,
    share_order,
    uniform,
)
from espnet_todm.util.units import format_amount
from tests.conftest import conformer

CRITERION = st.sampled_from(["params", "flops", "latency"])
SHAPE = st.sampled_from(get_args(ShareShape))
few = settings(max_examples=40, deadline=None)


@st.composite
def tables(draw: st.DrawFn) -> ComponentTable:
    """Any encoder: its layers may differ in their number of components, and costs are arbitrary."""
    components, modules, layers = [], {}, {}
    part = st.builds(Cost, st.integers(1, 1000), st.integers(1, 1000).map(float), st.integers(1, 1000).map(float))
    kinds = {"ffn_a": "ffn", "ffn_b": "ffn", "attention": "heads", "convolution": "conv", "branch": "cgmlp"}
    for layer in range(draw(st.integers(1, 6))):
        layers[layer] = draw(part)
        for module, kind in kinds.items():
            cost = draw(part)
            modules[layer, module] = draw(part)
            count = draw(st.integers(1, 5))
            components += [Component(Key(layer, module, index), kind, cost) for index in range(count)]
    return ComponentTable(tuple(components), modules, layers, draw(part))


def table_of(**options: Any) -> ComponentTable:
    return conformer(num_blocks=5, **options).component_table()


@given(st.integers(1, 40), st.sampled_from(["even", "last", "first"]))
def test_keep_order_names_every_layer_once(layers: int, drop: str) -> None:
    order = keep_order(layers, drop)
    assert sorted(order) == list(range(layers))
    if drop != "even":
        assert order == sorted(order, reverse=drop == "first")


@given(st.integers(3, 40), st.data())
def test_even_depths_leave_no_wide_gaps(layers: int, data: st.DataObject) -> None:
    depth = data.draw(st.integers(2, layers))
    kept = sorted(keep_order(layers)[:depth])
    gaps = [b - a for a, b in zip(kept, kept[1:])]
    assert (kept[0], kept[-1]) == (0, layers - 1)
    assert max(gaps) <= 2 * min(gaps) + 1  # halving the widest again and again


@few
@given(tables(), st.floats(0.01, 1), st.floats(0.01, 1))
def test_uniform_scalings_are_nested(table: ComponentTable, one: float, other: float) -> None:
    small, large = (uniform("x", table, share, ["ffn", "heads"]) for share in sorted((one, other)))
    assert small.components <= large.components


@few
@given(tables(), CRITERION, st.floats(0, 1), SHAPE)
def test_budget_is_used_up_to_one_component(
    table: ComponentTable, criterion: str, at: float, shape: ShareShape
) -> None:
    smallest, _ = share_order(table, shape)
    lowest, highest = table.cost(smallest).by(criterion), table.cost(table.full()).by(criterion)
    budget = lowest + at * (highest - lowest)
    subnet = fit_budget("x", table, criterion, budget, shape)
    cost = table.cost(subnet).by(criterion)
    assert cost <= budget * (1 + ROUNDING)
    others = table.full().components - subnet.components
    if others:
        dearest = max(table.cost(subnet.components | {key}).by(criterion) for key in others) - cost
        assert budget - cost < dearest


@few
@given(tables(), CRITERION, st.floats(0, 1), st.floats(0, 1), SHAPE)
def test_sets_of_budgets_are_nested(
    table: ComponentTable, criterion: str, one: float, other: float, shape: ShareShape
) -> None:
    smallest, _ = share_order(table, shape)
    lowest, highest = table.cost(smallest).by(criterion), table.cost(table.full()).by(criterion)
    budgets = (lowest + at * (highest - lowest) for at in sorted((one, other)))
    small, large = (fit_budget("x", table, criterion, budget, shape) for budget in budgets)
    assert small.components <= large.components


@few
@given(tables(), SHAPE)
def test_order_of_a_shape_has_every_component_once(table: ComponentTable, shape: ShareShape) -> None:
    smallest, following = share_order(table, shape)
    assert sorted([*smallest.components, *following]) == sorted(table.by_key)


@few
@given(tables(), CRITERION, st.floats(0, 1))
def test_ffn_first_cuts_ffn_2_then_ffn_1_then_the_cgmlp(table: ComponentTable, criterion: str, at: float) -> None:
    smallest, _ = share_order(table, "ffn_first")
    lowest, highest = table.amount(smallest, criterion), table.amount(table.full(), criterion)
    subnet = fit_budget("x", table, criterion, lowest + at * (highest - lowest), "ffn_first")
    stages = {name: {k for k in table.by_key if k.module == name} for name in ("ffn_b", "ffn_a", "branch")}
    for name in ("ffn_a", "branch"):
        stages[name] = {key for key in stages[name] if key.index}  # a block keeps the first units of these
    last = table.by_key.keys() - set().union(*stages.values())
    missing = table.by_key.keys() - subnet.components
    for earlier, later in zip(stages.values(), [*list(stages.values())[1:], last]):
        assert not later & missing or earlier <= missing
    for units in stages.values():  # evenly over the blocks
        kept = [key.index for key in units - missing]
        assert all(key.index >= max(kept, default=0) for key in units & missing)


def test_ffn_first_meets_its_share() -> None:
    table = table_of(macaron_style=True, ffn_chunks=4)
    full = table.amount(table.full(), "flops")
    for share in (0.9, 0.7, 0.5, 0.3):
        uniformly, ffn_first = (resolve_size("x", share, table, "flops", shape) for shape in get_args(ShareShape))
        dearest = max(component.cost.flops for component in table.components)
        assert share * full - dearest < table.amount(ffn_first, "flops") <= share * full
        count = {
            name: sum(key.module == name for key in ffn_first.components) for name in ("feed_forward", "self_attn")
        }
        assert count["feed_forward"] < sum(key.module == "feed_forward" for key in uniformly.components)
        assert count["self_attn"] >= sum(key.module == "self_attn" for key in uniformly.components)


def test_unknown_share_shape() -> None:
    with pytest.raises(UserError, match="share_shape: 'narrow' is unknown; allowed: uniform, ffn_first"):
        fit_budget("x", table_of(), "params", 1000, "narrow")  # type: ignore[arg-type]


@few
@given(tables(), CRITERION, st.sampled_from([0.0, 0.5, 0.99, 1.01, 3.0]))
def test_infeasible_budget_names_what_is_feasible(table: ComponentTable, criterion: str, factor: float) -> None:
    smallest = table.cost(share_order(table)[0]).by(criterion)
    highest = table.cost(table.full()).by(criterion)
    budget = factor * (smallest if factor < 1 else highest)
    with pytest.raises(UserError) as error:
        fit_budget("mine", table, criterion, budget)
    message = str(error.value)
    assert all(word in message for word in ("mine", criterion, *map(format_amount, (budget, smallest, highest))))


def test_budget_of_unknown_criterion() -> None:
    with pytest.raises(UserError, match="criterion: 'watts' is unknown; allowed: params, flops"):
        fit_budget("x", table_of(), "watts", 1000)


@few
@given(tables(), CRITERION, st.lists(st.floats(0.5, 1), min_size=1, max_size=4, unique=True))
def test_sizes_come_largest_first_with_the_full_one(table: ComponentTable, criterion: str, shares: list[float]) -> None:
    full = table.amount(table.full(), criterion)
    lowest = table.amount(share_order(table)[0], criterion)
    sets = {resolve_size("x", s, table, criterion).components: s for s in shares if s * full >= lowest}
    feasible = list(sets.values())  # those that come out as different sets
    sizes = resolve_sizes({f"s{i}": share for i, share in enumerate(feasible)}, table, criterion)
    costs = [table.amount(subnet, criterion) for subnet in sizes.values()]
    assert costs == sorted(costs, reverse=True)
    assert sizes["full"] == table.full()
    assert all(table.share(sizes[f"s{i}"], criterion) <= share + 1e-9 for i, share in enumerate(feasible))


def test_order_of_sizes_is_that_of_the_criterion() -> None:
    dear = Component(Key(0, "a", 0), "ffn", Cost(params=10, flops=1.0, latency=0.5))
    slow = Component(Key(0, "b", 0), "heads", Cost(params=1, flops=10.0, latency=2.0))
    table = ComponentTable((dear, slow), {(0, "a"): Cost(), (0, "b"): Cost()}, {0: Cost()}, Cost(1, 1.0, 1.0))
    specs = {"only_a": {"heads": 0}, "only_b": {"ffn": 0}}
    assert list(resolve_sizes(specs, table)) == ["full", "only_a", "only_b"]
    for criterion in ("flops", "latency"):
        assert list(resolve_sizes(specs, table, criterion)) == ["full", "only_b", "only_a"]


@pytest.mark.parametrize("criterion", ["params", "flops"])
def test_the_whole_share_is_the_full_set(criterion: str) -> None:
    table = table_of(conv_groups=2)  # whatever order the costs are summed in
    assert resolve_size("x", 1.0, table, criterion).components == table.full().components


def test_shares_by_latency_need_measurements() -> None:
    with pytest.raises(UserError, match=r"latency.*bench components"):
        resolve_sizes({"small": 0.5}, table_of(), "latency")


@few
@given(tables(), st.floats(0.01, 1), st.floats(0, 1), st.sampled_from(["even", "last", "first"]))
def test_mapping_scales_what_it_names(table: ComponentTable, depth: float, ffn: float, drop: str) -> None:
    subnet = resolve_size("x", {"depth": depth, "ffn": ffn, "drop": drop, "ffn_b": 1.0}, table)
    layers = set(keep_order(table.num_layers, drop)[: round_share(depth, table.num_layers)])
    assert set(subnet.layers) == layers
    for (layer, module), total in module_sizes(table).items():
        kept = subnet.layers.get(layer, {}).get(module, ())
        wanted = round_share(ffn, total) if module == "ffn_a" else total  # a module's own entry beats its kind's
        assert kept == (tuple(range(wanted)) if layer in layers else ())


@given(st.floats(0, 1), st.integers(1, 20))
def test_round_share(share: float, total: int) -> None:
    count = round_share(share, total)
    assert (count == 0) == (share == 0)
    assert count <= total and (count <= 1 or abs(count - share * total) <= 0.5 + 1e-9)


def test_lists_layers_and_switches() -> None:
    table = table_of()
    subnet = resolve_size("x", {"layers": [0, 3], "ffn": [4, 0, 0, 1, 0], "conv": False, "heads": True}, table)
    assert subnet.layers == {
        0: {"feed_forward": (0, 1, 2, 3), "feed_forward_macaron": (0, 1, 2, 3), "self_attn": (0, 1, 2, 3)},
        3: {"feed_forward": (0,), "feed_forward_macaron": (0,), "self_attn": (0, 1, 2, 3)},
    }
    assert resolve_size("x", {}, table) == Subnet("x", table.full().components)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"full": 0.5}, ["full", "redefined"]),
        ({"small": 0}, ["sizes.small", "0", "above 0"]),
        ({"small": 1.2}, ["sizes.small", "1.2", "up to 1"]),
        ({"small": float("nan")}, ["sizes.small", "nan"]),
        ({"small": 0.01}, ["small", "infeasible", "allows"]),
        ({"small": "half"}, ["sizes.small", "half", "mapping"]),
        ({"small": True}, ["sizes.small", "True"]),
        ({"small": None}, ["sizes.small", "None"]),
        ({"small": {"width": 0.5}}, ["sizes.small", "width", "ffn", "heads", "depth", "self_attn"]),
        ({"small": {"depth": 0}}, ["sizes.small.depth", "0", "5 layers"]),
        ({"small": {"depth": "0.5"}}, ["sizes.small.depth", "'0.5'"]),
        ({"small": {"depth": 0.5, "drop": "middle"}}, ["drop", "middle", "even, last, first"]),
        ({"small": {"layers": [0, 5]}}, ["sizes.small.layers", "5", "0..4"]),
        ({"small": {"layers": [True]}}, ["sizes.small.layers", "True", "0..4"]),
        ({"small": {"layers": []}}, ["sizes.small.layers", "[]"]),
        ({"small": {"layers": 3}}, ["sizes.small.layers", "3"]),
        ({"small": {"layers": [0], "depth": 0.5}}, ["sizes.small", "layers", "depth"]),
        ({"small": {"ffn": 1.5}}, ["sizes.small.ffn", "1.5", "[0, 1]"]),
        ({"small": {"ffn": -0.5}}, ["sizes.small.ffn", "-0.5"]),
        ({"small": {"ffn": "wide"}}, ["sizes.small.ffn", "wide"]),
        ({"small": {"ffn": [1, 2]}}, ["sizes.small.ffn", "2 entries", "5 layers"]),
        ({"small": {"heads": [1, 2, 9, 1, 1]}}, ["sizes.small.heads[2]", "9", "0 to 4"]),
        ({"small": {"feed_forward": [1, 1.5, 1, 1, 1]}}, ["sizes.small.feed_forward[1]", "1.5"]),
        ({"small": {"ffn": 0, "heads": 0, "conv": 0}}, ["sizes.small", "nothing", "no component"]),
        ({"0.5": 0.5}, ["0.5", "letters"]),
        ({"a/b": 0.5}, ["a/b", "letters"]),
        ({"half": 0.5}, ["half", "taken", "half_size"]),
        ({"small": 0.5, "tiny": 0.5}, ["sizes.tiny", "0.5", "'small'", "already"]),
        ({"small": 0.5, "tiny": 0.49999}, ["sizes.tiny", "0.49999", "'small'", "same set", "params"]),
        ([0.5], ["sizes", "[0.5]", "mapping"]),
    ],
)
def test_a_wrong_size_ends_in_one_clear_line(sizes: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        resolve_sizes(sizes, table_of())
    message = str(error.value)
    assert "\n" not in message
    if "nothing" in words:
        words = [word for word in words if word != "nothing"]
    assert all(word in message for word in words), message
