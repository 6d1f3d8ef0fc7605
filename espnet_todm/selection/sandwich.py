"""The sandwich rule: each step trains the max subnet, the min subnet and some random subnets between (TODM, AlphaNet)."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from espnet_todm.components import FULL, ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.sizes import first_components, keep_order, module_sizes, round_share

Range = Sequence[float]


class Sandwich:
    """Picks the subnets of a step as a pure function of (seed, step): the same on every rank and after a resume.

    Without a ``search_space`` the random subnets are named sizes between the smallest and the full one. With one, they are
    drawn from ranges ``[low, high]`` of shares: ``depth`` and each kind of component (``ffn``, ``heads``, ``conv``).
    ``drop`` is the order in which depth removes layers (:func:`espnet_todm.sizes.keep_order`). Each layer draws its own
    widths unless ``per_layer: false``. The min subnet is the low end of all ranges. Named sizes should lie inside them.

    Raises UserError for unknown keys, ranges outside [0, 1], and too few sizes.
    """

    def __init__(
        self,
        table: ComponentTable,
        sizes: Mapping[str, Subnet],
        seed: int = 0,
        random_subnets: int = 1,
        search_space: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if isinstance(random_subnets, bool) or not isinstance(random_subnets, int) or not 0 <= random_subnets <= 8:
            raise UserError(f"random_subnets: {random_subnets!r} must be a whole number from 0 to 8")
        self.table = table
        self.seed = seed
        self.space = _check_space(search_space, table) if search_space else None
        self.full = table.full()
        if self.space:
            self.smallest = self._from_ranges(self.space, "min", None)
            if not self.smallest.components:
                raise UserError("search_space: its low end keeps no component at all; raise the low end of one kind")
            self.middle: list[Subnet] = []
        else:
            ordered = sorted(sizes.values(), key=lambda subnet: table.cost(subnet).params)
            if len(ordered) < 2:
                raise UserError("sizes: a supernet needs at least one size below full, or a search_space to draw from")
            self.smallest, *self.middle = [subnet for subnet in ordered if subnet.name != FULL]
        self.random_subnets = random_subnets if self.space else min(random_subnets, len(self.middle))
        if self.random_subnets < random_subnets:
            logging.info("only %d sizes lie between the smallest and the full one", len(self.middle))

    def pick(self, step: int) -> list[Subnet]:
        """The subnets of step ``step`` (0-based): max (the teacher) first, then the random ones, then min."""
        rng = random.Random(f"sandwich {self.seed} {step}")  # seeding by text is stable across platforms and versions
        if self.space:
            drawn = [self._from_ranges(self.space, f"random{n}", rng) for n in range(self.random_subnets)]
        else:
            drawn = rng.sample(self.middle, self.random_subnets)
        return [self.full, *drawn, self.smallest]

    def _from_ranges(self, space: Mapping[str, Any], name: str, rng: Optional[random.Random]) -> Subnet:
        """A subnet drawn from the ranges, or the low end of all ranges if ``rng`` is None."""
        depth = _draw(space["depth"], self.table.num_layers, rng)
        layers = set(keep_order(self.table.num_layers, space["drop"])[:depth])
        kinds = {(c.key.layer, c.key.module): c.kind for c in self.table.components}
        shared: dict[tuple[str, int], int] = {}
        counts = {}
        for place, total in module_sizes(self.table).items():
            count = _draw(space.get(kinds[place], (1.0, 1.0)), total, rng)
            if not space["per_layer"]:
                count = shared.setdefault((place[1], total), count)
            counts[place] = count if place[0] in layers else 0
        return first_components(name, counts)


def _draw(bounds: Range, total: int, rng: Optional[random.Random]) -> int:
    low, high = (round_share(share, total) for share in bounds)
    return low if rng is None else rng.randint(low, high)


def _check_space(space: Mapping[str, Any], table: ComponentTable) -> dict[str, Any]:
    if not isinstance(space, Mapping):
        raise UserError(f"search_space: {space!r} must be a mapping such as {{depth: [0.5, 1.0], ffn: [0.25, 1.0]}}")
    allowed = ("depth", "drop", "per_layer", *table.kinds)
    for key, value in space.items():
        if key not in allowed:
            raise UserError(f"search_space: unknown key {key!r}; allowed: {', '.join(allowed)}")
        if key == "per_layer" and not isinstance(value, bool):
            raise UserError(f"search_space.per_layer: {value!r} must be true or false")
        if key in ("drop", "per_layer"):
            continue
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if (
            not pair
            or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
            or not 0 <= value[0] <= value[1] <= 1
            or (key == "depth" and value[0] == 0)
        ):
            lowest = "above 0" if key == "depth" else "0 or more"
            raise UserError(f"search_space.{key}: {value!r} must be [low, high], shares from {lowest} to 1")
    keep_order(table.num_layers, space.get("drop", "even"))
    return {"depth": (1.0, 1.0), "drop": "even", "per_layer": True, **space}
