"""What a learned selection chooses among, and how an order of worth becomes nested subnets on exact budgets."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from espnet_todm.components import ComponentTable, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice

GRANULARITIES = ("component", "layer")
Place = tuple[int, str]


@dataclass(frozen=True)
class Units:
    """N units, each a component, or with granularity "layer" all components of one module of one block.

    ``costs`` (N,) float64: a unit's own amount of the criterion, with an even share of what its module and its block cost
    once. ``rest``: what is paid always, so that ``rest + costs.sum()`` is the cost of the full set. ``places``: (layer,
    module) -> the unit (components,) of each of its components.
    """

    table: ComponentTable
    criterion: str
    keys: tuple[tuple[Key, ...], ...]
    costs: Tensor
    rest: float
    places: Mapping[Place, Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def total(self) -> float:
        """Cost of the full set."""
        return self.table.cost(self.table.full()).by(self.criterion)

    def gates(self, weights: Tensor) -> dict[Place, Tensor]:
        """One weight per unit (N,) -> gates (components,) of every module, as ``SupernetEncoder.blocks`` takes them."""
        return {place: weights[index.to(weights.device)] for place, index in self.places.items()}

    def subnet(self, name: str, units: Sequence[int]) -> Subnet:
        """The subnet that keeps these units."""
        return Subnet(name, frozenset(key for unit in units for key in self.keys[unit]))

    def nested(self, order: Sequence[int], shares: Mapping[str, float]) -> dict[str, Subnet]:
        """The subnets that keep the longest prefix of ``order`` within each share of the full cost.

        Prefixes of one order are nested, and the next unit of each would pass its budget: every set is within one unit of
        what it may cost.
        """
        spent = [cost.by(self.criterion) for cost in self.table.running_cost(self.keys[unit] for unit in order)]
        chosen = {}
        for name, share in shares.items():
            fitting = sum(cost <= share * self.total for cost in spent)
            chosen[name] = self.subnet(name, order[:fitting])
        return chosen


def make_units(table: ComponentTable, granularity: str, criterion: str) -> Units:
    """Raises UserError for an unknown granularity, and a criterion that is unknown or not measured."""
    table.check(criterion)
    check_choice("granularity", granularity, GRANULARITIES)
    groups: dict[Any, list[Key]] = {}
    for component in table.components:
        key = component.key
        groups.setdefault(key if granularity == "component" else (key.layer, key.module), []).append(key)
    keys = tuple(tuple(group) for group in groups.values())
    in_place: dict[Place, list[int]] = {}
    for unit, group in enumerate(keys):
        for key in group:
            in_place.setdefault((key.layer, key.module), []).append(unit)
    per_layer = [sum(layer == key.layer for key in table.by_key) for layer in range(table.num_layers)]
    costs = [
        sum(
            table.by_key[key].cost.by(criterion)
            + table.module_costs[key.layer, key.module].by(criterion) / len(in_place[key.layer, key.module])
            + table.layer_costs[key.layer].by(criterion) / per_layer[key.layer]
            for key in group
        )
        for group in keys
    ]
    places = {place: torch.tensor(units) for place, units in in_place.items()}
    return Units(table, criterion, keys, torch.tensor(costs, dtype=torch.float64), table.rest.by(criterion), places)


def check_shares(specs: Mapping[str, Any], units: Units) -> dict[str, float]:
    """The shares that a learned selection has to meet, smallest first, from the sizes of ``encoder_conf``.

    Raises UserError for a size that is a fixed set or no share, two of one share, and a budget that cannot be met.
    """
    if not specs:
        raise UserError("sizes: none are named; a learned selection needs shares such as {small: 0.35}")
    lowest = (units.rest + float(units.costs.max())) / units.total
    for name, share in specs.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise UserError(f"sizes.{name}: {share!r} is a fixed set; a learned selection needs a share such as 0.35")
        if not lowest <= share < 1:
            raise UserError(
                f"sizes.{name}: {share} of the {units.criterion} is infeasible; this supernet allows shares from"
                f" {lowest:.3f} to below 1"
            )
    by_share: dict[float, str] = {}
    for name, share in specs.items():
        if share in by_share:
            raise UserError(
                f"sizes.{name}: {share} is the share of {by_share[share]!r} already; each size needs its own"
            )
        by_share[share] = name
    return {name: share for share, name in sorted(by_share.items())}


def check_distinct(subnets: Mapping[str, Subnet]) -> None:
    """Raises UserError when two sizes came out as one set: their shares lie closer than one unit."""
    seen: dict[frozenset[Key], str] = {}
    for name, subnet in subnets.items():
        if subnet.components in seen:
            raise UserError(
                f"sizes.{name}: comes out as the same set as {seen[subnet.components]!r}; set shares further apart"
            )
        seen[subnet.components] = name


def draw(seed: int, step: int, what: str, names: Sequence[str]) -> str:
    """One of the names, as a pure function of (seed, step): the same on every rank and after a resume."""
    return random.Random(f"{what} {seed} {step}").choice(list(names))
