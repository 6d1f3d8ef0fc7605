"""Corrections of predicted latencies by whole subnets, and the errors that are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.bench.components.fit import (
    BOUNDS,
    FITTED,
    HELD_OUT,
    checked_subnets,
    correct,
    errors,
    summarise,
)
from espnet_todm.encoders.latency import LatencyTable, Line
from tests.conftest import conformer, synthetic_latency

ENCODER = conformer(num_blocks=4)
PLAIN = ENCODER.component_table()
MEASURED = synthetic_latency(ENCODER)
KINDS = {(component.key.layer, component.key.module): component.kind for component in PLAIN.components}
factors = st.floats(0.5, 2.0)


def scaled(by: dict[str, float]) -> LatencyTable:
    modules = {
        place: Line(by[KINDS[place]] * line.fixed, by[KINDS[place]] * line.per_component)
        for place, line in MEASURED.modules.items()
    }
    layers = {layer: by["norms"] * seconds for layer, seconds in MEASURED.layers.items()}
    return replace(MEASURED, modules=modules, layers=layers, rest=by["rest"] * MEASURED.rest)


def test_subnets_that_are_held_out_are_others_and_always_the_same() -> None:
    checked = checked_subnets(PLAIN)
    assert checked == checked_subnets(PLAIN)
    assert PLAIN.full() in checked[FITTED]
    sets = [subnet.components for subnet in [*checked[FITTED], *checked[HELD_OUT]]]
    assert len(set(sets)) == len(sets) and all(sets)
    shares = [PLAIN.share(subnet, "flops") for subnet in checked[HELD_OUT]]
    assert max(shares) - min(shares) > 0.2


@settings(max_examples=20, deadline=None)
@given(ffn=factors, heads=factors, conv=factors, rest=factors)
def test_kinds_that_are_slower_in_whole_models_are_found(ffn: float, heads: float, conv: float, rest: float) -> None:
    truth = scaled({"ffn": ffn, "heads": heads, "conv": conv, "rest": rest, "norms": 1.0}).apply(PLAIN)
    checked = checked_subnets(PLAIN)
    seconds = {use: {s: truth.cost(s).latency for s in subnets} for use, subnets in checked.items()}
    corrected, found = correct(MEASURED, PLAIN, seconds[FITTED])
    assert all(BOUNDS[0] <= factor <= BOUNDS[1] for factor in found.values())
    before = summarise(errors(MEASURED.apply(PLAIN), seconds[HELD_OUT]))
    after = summarise(errors(corrected.apply(PLAIN), seconds[HELD_OUT]))
    worst = max(abs(factor - 1) for factor in (ffn, heads, conv, rest))
    assert after["mean_absolute_percentage_error"] <= 0.05 * worst + 1e-6
    assert after["mean_absolute_percentage_error"] <= before["mean_absolute_percentage_error"] + 1e-6


def test_a_table_stays_possible_whatever_was_measured() -> None:
    wild = dict.fromkeys(checked_subnets(PLAIN)[FITTED], 1e-09)
    corrected, found = correct(MEASURED, PLAIN, wild)
    assert corrected.rest > 0 and min(found.values()) >= BOUNDS[0]


def test_errors_are_summed_up() -> None:
    entries = {
        name: {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}
        for name, predicted, measured in (("a", 1.1, 1.0), ("b", 1.6, 2.0), ("c", 4.0, 4.0))
    }
    assert summarise(entries) == {
        "subnets": 3,
        "mean_absolute_percentage_error": pytest.approx(0.1),
        "rank_correlation": pytest.approx(1.0),
        "largest_error": pytest.approx(-0.2),
    }
    assert summarise({"a": entries["a"]})["rank_correlation"] is None
