"""Correct the latencies of parts so that their sum predicts the latency of whole encoders, and measure the error.

Each part is timed alone in a loop with a warm cache. It may take longer inside a whole model. Therefore whole random
subnets are timed too. Some of them give a correction factor for each kind of part, by bounded least squares of the relative
errors. The other subnets are held out, and the reported error is theirs.
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
COUNT = 12  # random subnets for the fit, and as many held out
SHARES = (0.15, 1.0)  # of each kind's components that a random subnet keeps
BOUNDS = (0.1, 10.0)  # bounds of the correction factors
STIFFNESS = 0.01  # weight of (factor - 1) squared, relative to a subnet's squared relative error
REST, NORMS = "rest", "norms"


def checked_subnets(table: ComponentTable) -> dict[str, list[Subnet]]:
    """The full set and random subnets for the fit, and random held-out subnets. They are the same in every call."""
    chance = random.Random(0)
    drawn = [_random_subnet(table, chance, f"random_{number}") for number in range(2 * COUNT)]
    return {FITTED: [table.full(), *drawn[0::2]], HELD_OUT: drawn[1::2]}


def _random_subnet(table: ComponentTable, chance: random.Random, name: str) -> Subnet:
    """A subnet with random layers. Each kind of component has its own random share, so a fit can separate the kinds."""
    depth, shares = chance.uniform(0.4, 1.0), {kind: chance.uniform(*SHARES) for kind in table.kinds}
    layers = {layer for layer in sorted(table.layer_costs) if chance.random() < depth} or {0}
    inside = [component for component in table.components if component.key.layer in layers]
    kept = [component.key for component in inside if chance.random() < shares[component.kind]]
    return Subnet(name, frozenset(kept or [inside[0].key]))


def correct(
    latency: LatencyTable, plain: ComponentTable, measured: Mapping[Subnet, float]
) -> tuple[LatencyTable, dict[str, float]]:
    """Fit a factor for each kind of part. Returns the corrected table and the factors by kind.

    Args:
        measured: latency of whole subnets in seconds per second of speech.
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
    """Name of subnet -> predicted and measured seconds per second of speech, and the relative error."""
    found = {}
    for subnet, seconds in measured.items():
        predicted = table.cost(subnet).latency
        found[subnet.name] = {"predicted": predicted, "measured": seconds, "error": predicted / seconds - 1}
    return found


def summarise(entries: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Mean absolute relative error, Spearman's rank correlation and largest relative error of :func:`errors`.

    The correlation is None if all predicted or all measured values are equal.
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
    """The table with all latencies 0 except those of one group."""
    every = [*set(kinds.values()), NORMS, REST]
    return _scaled(latency, kinds, {name: float(name == group) for name in every})


def _scaled(latency: LatencyTable, kinds: Mapping[tuple[int, str], str], factors: Mapping[str, float]) -> LatencyTable:
    modules = {
        place: Line(factors[kinds[place]] * line.fixed, factors[kinds[place]] * line.per_component)
        for place, line in latency.modules.items()
    }
    layers = {layer: factors[NORMS] * seconds for layer, seconds in latency.layers.items()}
    return replace(latency, modules=modules, layers=layers, rest=factors[REST] * latency.rest)
