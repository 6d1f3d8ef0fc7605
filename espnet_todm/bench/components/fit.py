"""How well the sum of an encoder's parts predicts whole models, and corrections that make it predict them better.

Parts are timed one by one, in a loop of their own and out of a warm cache; in a whole model the same part may take longer.
So whole random subnets are timed too. On some of them a factor is fitted to each kind of part, within bounds and by least
squares of relative errors; others are held out, and the error that is told is theirs alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.encoders.latency import LatencyTable, Line

FITTED, HELD_OUT = "fitted", "held_out"
COUNT = 12  # random subnets of each
SHARES = (0.15, 1.0)  # of each kind's components that a random subnet keeps
BOUNDS = (0.1, 10.0)  # of factors
STIFFNESS = 0.01  # how much a factor's distance from 1 counts beside a subnet's relative error, both squared
REST, NORMS = "rest", "norms"


def checked_subnets(table: ComponentTable) -> dict[str, list[Subnet]]:
    """The full set and random ones to fit on, others to hold out, always the same for one encoder."""
    chance = random.Random(0)
    drawn = [_random_subnet(table, chance, f"random_{number}") for number in range(2 * COUNT)]
    return {FITTED: [table.full(), *drawn[0::2]], HELD_OUT: drawn[1::2]}


def _random_subnet(table: ComponentTable, chance: random.Random, name: str) -> Subnet:
    """Layers, and of those left each kind's components, are kept with shares of their own: so kinds can be told apart."""
    depth, shares = chance.uniform(0.4, 1.0), {kind: chance.uniform(*SHARES) for kind in table.kinds}
    layers = {layer for layer in sorted(table.layer_costs) if chance.random() < depth} or {0}
    inside = [component for component in table.components if component.key.layer in layers]
    kept = [component.key for component in inside if chance.random() < shares[component.kind]]
    return Subnet(name, frozenset(kept or [inside[0].key]))


def correct(
    latency: LatencyTable, plain: ComponentTable, measured: Mapping[Subnet, float]
) -> tuple[LatencyTable, dict[str, float]]:
    """The table with a factor on each kind of part, and these factors.

    Args:
        measured: seconds per second of speech of whole subnets.
    """
    groups = [*plain.kinds, NORMS, REST]
    kinds = {(component.key.layer, component.key.module): component.kind for component in plain.components}
    only = [_only(latency, kinds, group) for group in groups]
    predicted = np.array([[table.apply(plain).cost(subnet).latency for table in only] for subnet in measured])
    seconds = np.array(list(measured.values()))[:, None]
    stiff = np.sqrt(STIFFNESS) * np.eye(len(groups))
    rows, wanted = np.vstack([predicted / seconds, stiff]), np.concatenate([np.ones(len(seconds)), stiff.sum(1)])
    factors = dict(zip(groups, map(float, lsq_linear(rows, wanted, bounds=BOUNDS).x)))
    return _scaled(latency, kinds, factors), factors


def errors(table: ComponentTable, measured: Mapping[Subnet, float]) -> dict[str, dict[str, float]]:
    """By name of subnet: seconds predicted and measured, and the relative error."""
    found = {}
    for subnet, seconds in measured.items():
        predicted = table.cost(subnet).latency
        found[subnet.name] = {"predicted": predicted, "measured": seconds, "error": predicted / seconds - 1}
    return found


def summarise(entries: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Mean absolute percentage error, as a share, Spearman's rank correlation, and the largest error, of :func:`errors`.

    Where all are alike there is no order, and the correlation is None.
    """
    found = list(entries.values())
    predicted, measured = ([entry[key] for entry in found] for key in ("predicted", "measured"))
    ordered = len(set(predicted)) > 1 and len(set(measured)) > 1
    return {
        "subnets": len(found),
        "mean_absolute_percentage_error": float(np.mean([abs(entry["error"]) for entry in found])),
        "rank_correlation": float(spearmanr(predicted, measured)[0]) if ordered else None,
        "largest_error": max((entry["error"] for entry in found), key=abs),
    }


def _only(latency: LatencyTable, kinds: Mapping[tuple[int, str], str], group: str) -> LatencyTable:
    """The part of a table that belongs to one group."""
    every = [*set(kinds.values()), NORMS, REST]
    return _scaled(latency, kinds, {name: float(name == group) for name in every})


def _scaled(latency: LatencyTable, kinds: Mapping[tuple[int, str], str], factors: Mapping[str, float]) -> LatencyTable:
    modules = {
        place: Line(factors[kinds[place]] * line.fixed, factors[kinds[place]] * line.per_component)
        for place, line in latency.modules.items()
    }
    layers = {layer: factors[NORMS] * seconds for layer, seconds in latency.layers.items()}
    return replace(latency, modules=modules, layers=layers, rest=factors[REST] * latency.rest)
