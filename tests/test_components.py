"""Costs of sets of components, and sets as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.components import Component, ComponentTable, Cost, Key, Subnet
from espnet_todm.errors import UserError

LAYERS, SIZES = 3, {"feed_forward": 4, "self_attn": 2, "conv_module": 1}
KEYS = [Key(la, module, i) for la in range(LAYERS) for module, n in SIZES.items() for i in range(n)]
KINDS = {"feed_forward": "ffn", "self_attn": "heads", "conv_module": "conv"}
costs = st.builds(Cost, st.integers(0, 1000), st.floats(0, 1e6), st.floats(0, 1))
sets = st.frozensets(st.sampled_from(KEYS))


@st.composite
def tables(draw: st.DrawFn) -> ComponentTable:
    modules = [(layer, module) for layer in range(LAYERS) for module in SIZES]
    return ComponentTable(
        tuple(Component(key, KINDS[key.module], draw(costs)) for key in KEYS),
        {module: draw(costs) for module in modules},
        {layer: draw(costs) for layer in range(LAYERS)},
        draw(costs),
    )


def cost_by_hand(table: ComponentTable, keys: frozenset[Key]) -> Cost:
    params, flops, latency = table.rest.params, table.rest.flops, table.rest.latency
    for layer in range(LAYERS):
        inside = [key for key in keys if key.layer == layer]
        parts = [table.layer_costs[layer]] * bool(inside)
        parts += [table.module_costs[layer, m] for m in SIZES if any(key.module == m for key in inside)]
        parts += [table.by_key[key].cost for key in inside]
        params, flops = params + sum(p.params for p in parts), flops + sum(p.flops for p in parts)
        latency += sum(p.latency for p in parts)
    return Cost(params, flops, latency)


@given(tables(), sets)
def test_cost_is_the_sum_of_what_is_there(table: ComponentTable, keys: frozenset[Key]) -> None:
    cost, expected = table.cost(keys), cost_by_hand(table, keys)
    assert cost.params == expected.params
    assert cost.flops == pytest.approx(expected.flops)
    assert cost.latency == pytest.approx(expected.latency)
    assert table.cost(Subnet("x", keys)) == table.cost(keys)


@given(tables(), sets, sets)
def test_larger_sets_cost_no_less_and_shared_parts_are_paid_once(
    table: ComponentTable, one: frozenset[Key], other: frozenset[Key]
) -> None:
    for criterion in ("flops", "latency"):
        larger, smaller = table.cost(one | other).by(criterion), table.cost(one).by(criterion)
        assert larger >= smaller or larger == pytest.approx(smaller)  # sums in another order
    union, both = table.cost(one | other).params, table.cost(one & other).params
    apart = table.cost(one).params + table.cost(other).params
    assert union >= max(table.cost(one).params, table.cost(other).params)
    assert union + both <= apart  # equal but for norms and biases that both pay


@given(tables(), sets)
def test_layers_that_share_nothing_add_up(table: ComponentTable, keys: frozenset[Key]) -> None:
    by_layer = [frozenset(key for key in keys if key.layer == layer) for layer in range(LAYERS)]
    apart = sum(table.cost(part).params - table.rest.params for part in by_layer)
    assert table.cost(keys).params == table.rest.params + apart


@given(tables(), sets)
def test_share_lies_between_the_rest_and_one(table: ComponentTable, keys: frozenset[Key]) -> None:
    if table.cost(table.full()).params:
        assert 0 <= table.share(Subnet("x", keys), "params") <= table.share(table.full(), "params") == 1


@given(sets)
def test_json_round_trip(keys: frozenset[Key]) -> None:
    subnet = Subnet("mine", keys)
    again = Subnet.from_json("mine", json.loads(json.dumps(subnet.to_json())))
    assert again == subnet
    kept = {Key(la, m, i) for la, modules in subnet.layers.items() for m, indices in modules.items() for i in indices}
    assert kept == keys
    assert all(list(ix) == sorted(ix) for modules in subnet.layers.values() for ix in modules.values())


@pytest.mark.parametrize(
    "kept", [None, [], "full", {"0": [1]}, {"zero": {"m": [1]}}, {"0": {"m": 1}}, {"0": {"m": ["one"]}}, {"0": None}]
)
def test_json_of_another_form_is_refused(kept: Any) -> None:
    with pytest.raises(UserError, match=r"subnet 'mine': 'kept' must be") as error:
        Subnet.from_json("mine", kept)
    assert "\n" not in str(error.value)


@given(tables())
def test_unknown_components_and_criteria_are_named(table: ComponentTable) -> None:
    with pytest.raises(UserError, match=r"subnet mine: component 5 of self_attn in layer 1 .*3 layers, 21 components"):
        table.cost(Subnet("mine", frozenset({Key(1, "self_attn", 5)})))
    for ask in (table.cost(table.full()).by, table.check):
        with pytest.raises(UserError, match="criterion: 'watts' is unknown; allowed: params, flops, latency"):
            ask("watts")


@given(tables(), sets)
def test_latency_that_nobody_measured_is_refused(table: ComponentTable, keys: frozenset[Key]) -> None:
    measured = replace(table, rest=Cost(latency=0.5))
    assert measured.criteria == ("params", "flops", "latency")
    assert measured.amount(keys, "latency") == measured.cost(keys).latency
    without = replace(table, rest=Cost(params=1))
    assert without.criteria == ("params", "flops")
    for ask in (without.amount, without.share):
        with pytest.raises(UserError, match=r"'latency' has not been measured.*espnet_todm\.bin\.bench components"):
            ask(Subnet("x", keys), "latency")


@given(tables())
def test_full_set_and_kinds(table: ComponentTable) -> None:
    assert table.full().components == set(KEYS)
    assert table.kinds == ("ffn", "heads", "conv")
    assert table.num_layers == LAYERS
