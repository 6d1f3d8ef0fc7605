"""The units of a selection, and the nested subnets that an order of the units gives for the budgets of the sizes."""

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
    """N units. A unit is one component or, with granularity "layer", all components of one module of one block.

    ``costs`` (N,) float64: cost of each unit in the criterion, with an equal share of the fixed costs of its module and
    block. ``rest``: cost that all subnets have; ``rest + costs.sum()`` is the cost of the full set. ``places``: (layer,
    module) -> unit index of each of its components, (components,) int64.
    """

    table: ComponentTable
    criterion: str
    keys: tuple[tuple[Key, ...], ...]
    costs: Tensor
    rest: float
    places: Mapping[Place, Tensor] = field(repr=False)
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def total(self) -> float:
        """Cost of the full set."""
        return self.table.cost(self.table.full()).by(self.criterion)

    def gates(self, weights: Tensor) -> dict[Place, Tensor]:
        """Weights of the units (N,) -> gates (components,) of every module, for ``SupernetEncoder.blocks``."""
        index = self._on(weights.device)[1]
        parts = weights[index].split([len(units) for units in self.places.values()])  # one launch for all modules
        return dict(zip(self.places, parts))

    def costs_on(self, device: torch.device) -> Tensor:
        """``costs`` on a device."""
        return self._on(device)[0]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``costs`` and all of ``places`` one after the other on a device, copied once."""
        if device not in self._copies:
            self._copies[device] = self.costs.to(device), torch.cat(list(self.places.values())).to(device)
        return self._copies[device]

    def subnet(self, name: str, units: Sequence[int]) -> Subnet:
        """The subnet that keeps these units."""
        return Subnet(name, frozenset(key for unit in units for key in self.keys[unit]))

    def nested(self, order: Sequence[int], shares: Mapping[str, float]) -> dict[str, Subnet]:
        """Subnet of each size: the longest prefix of ``order`` whose cost is within the size's share of the full cost.

        Prefixes of one order are nested. One more unit would exceed the budget, so each subnet is within one unit of its
        budget.
        """
        spent = [cost.by(self.criterion) for cost in self.table.running_cost(self.keys[unit] for unit in order)]
        chosen = {}
        for name, share in shares.items():
            fitting = sum(cost <= share * self.total for cost in spent)
            chosen[name] = self.subnet(name, order[:fitting])
        return chosen


def make_units(table: ComponentTable, granularity: str, criterion: str) -> Units:
    """Build the units. Raises UserError for an unknown granularity, or a criterion that is unknown or not measured."""
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
    """The shares of the sizes in ``encoder_conf``, smallest first.

    Raises UserError for a size that is not given as a share, two sizes with one share, and an infeasible share.
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
    """Raises UserError if two sizes keep the same components: their shares differ by less than one unit."""
    seen: dict[frozenset[Key], str] = {}
    for name, subnet in subnets.items():
        if subnet.components in seen:
            raise UserError(
                f"sizes.{name}: comes out as the same set as {seen[subnet.components]!r}; set shares further apart"
            )
        seen[subnet.components] = name


def draw(seed: int, step: int, what: str, names: Sequence[str]) -> str:
    """Draw one of the names as a pure function of (seed, step): the same on every rank and after a resume."""
    return random.Random(f"{what} {seed} {step}").choice(list(names))
