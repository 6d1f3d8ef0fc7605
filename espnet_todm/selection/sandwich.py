"""The sandwich rule: each step trains the max subnet, the min subnet and some random subnets between (TODM, AlphaNet)."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from espnet_todm.components import FULL, ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.sizes import first_components, keep_order, module_sizes, round_share
from espnet_todm.util.checks import check_by_name, check_length, is_number

Range = Sequence[float]
ALL = "all"


class Sandwich:
    """Picks the subnets of a step as a pure function of (seed, step): the same on every rank and after a resume.

    Without a ``search_space`` the random subnets are named sizes between the smallest and the full one. With one, they are
    drawn from ranges ``[low, high]`` of shares: ``depth`` and each kind of component (``ffn``, ``heads``, ``conv``).
    ``drop`` is the order in which depth removes layers (:func:`espnet_todm.sizes.keep_order`). Each layer draws its own
    widths unless ``per_layer: false``. The min subnet is the low end of all ranges. Named sizes should lie inside them.

    Args:
        random_subnets: number of random subnets of a step, or "all": every step trains every named size.
        size_sampling: name -> relative probability with which a size is drawn, default 1.
        join: name -> step from which a size is trained, as a share of the run (below 1) or a step number; default 0. A
            step is the sandwich of the sizes that have joined: the full one, the smallest, and random ones between.

    Raises UserError for unknown keys and sizes, values outside their ranges, and too few sizes.
    """

    def __init__(
        self,
        table: ComponentTable,
        sizes: Mapping[str, Subnet],
        seed: int = 0,
        random_subnets: Union[int, str] = 1,
        search_space: Optional[Mapping[str, Any]] = None,
        size_sampling: Optional[Mapping[str, float]] = None,
        join: Optional[Mapping[str, float]] = None,
    ) -> None:
        _check_number_of_subnets(random_subnets, search_space)
        self.table = table
        self.seed = seed
        self.space = _check_space(search_space, table) if search_space else None
        self.full = table.full()
        self.below: list[Subnet] = []  # named sizes without the full one, smallest first
        if self.space:
            self.smallest = self._from_ranges(self.space, "min", None)
            if not self.smallest.components:
                raise UserError("search_space: its low end keeps no component at all; raise the low end of one kind")
        else:
            ordered = sorted(sizes.values(), key=lambda subnet: table.cost(subnet).params)
            if len(ordered) < 2:
                raise UserError("sizes: a supernet needs at least one size below full, or a search_space to draw from")
            self.below = [subnet for subnet in ordered if subnet.name != FULL]
            self.smallest = self.below[0]
        between = len(self.below) - 1
        wanted = between if random_subnets == ALL else int(random_subnets)
        self.random_subnets = wanted if self.space else min(wanted, between)
        if self.random_subnets < wanted:
            logging.info("only %d sizes lie between the smallest and the full one", between)
        self.sampling = self._check_sampling(size_sampling or {})
        self.join = self._check_join(join or {})

    def pick(self, step: int, planned: Optional[int] = None) -> list[Subnet]:
        """The subnets of step ``step`` (0-based): max (the teacher) first, then the random ones, then min.

        ``planned``: steps of the whole run. Raises UserError if ``join`` has shares of a run of unknown length.
        """
        rng = random.Random(f"sandwich {self.seed} {step}")  # seeding by text is stable across platforms and versions
        if self.space:
            drawn = [self._from_ranges(self.space, f"random{n}", rng) for n in range(self.random_subnets)]
            return [self.full, *drawn, self.smallest]
        joined = [subnet for subnet in self.below if step >= self.joins_at(subnet.name, planned)]
        if not joined:
            return [self.full]
        smallest, *middle = joined
        return [self.full, *self._draw(middle, rng), smallest]

    def in_every_step(self) -> list[Subnet]:
        """The subnets that every step trains, the full one first."""
        if self.join:
            return [self.full]
        middle = self.below[1:] if self.random_subnets == len(self.below) - 1 else []
        return [self.full, *reversed(middle), self.smallest]

    def joins_at(self, name: str, planned: Optional[int]) -> int:
        """The step from which a size is trained. Raises UserError if it is not before the end of the run."""
        start = self.join.get(name, 0)
        if 0 < start < 1:
            return int(start * check_length("join", planned, "give step numbers"))
        if start and planned is not None and start >= planned:
            raise UserError(f"join.{name}: {start} is not before the end of the run of {planned} steps")
        return int(start)

    def _draw(self, middle: Sequence[Subnet], rng: random.Random) -> list[Subnet]:
        """Draw ``random_subnets`` different sizes of ``middle``, or all of them if there are fewer."""
        number = min(self.random_subnets, len(middle))
        if not self.sampling:
            return rng.sample(middle, number)
        drawn: list[Subnet] = []
        while len(drawn) < number:
            left = [subnet for subnet in middle if subnet not in drawn]
            drawn += rng.choices(left, [self.sampling.get(subnet.name, 1.0) for subnet in left])
        return drawn

    def _check_sampling(self, sampling: Mapping[str, float]) -> dict[str, float]:
        if sampling and (self.space or self.random_subnets in (0, len(self.below) - 1)):
            raise UserError(
                "size_sampling: no size is drawn; needed: more sizes between smallest and full than random_subnets"
            )
        names = [subnet.name for subnet in self.below[1:]]
        return check_by_name("size_sampling", sampling, names, "size that is drawn", above=0)

    def _check_join(self, join: Mapping[str, float]) -> dict[str, float]:
        if join and self.space:
            raise UserError("join: is for named sizes, not for a search_space; warmup_steps delays all of its subnets")
        starts = check_by_name("join", join, [subnet.name for subnet in self.below], "size below full", at_least=0)
        for name, start in starts.items():
            if start > 1 and start != int(start):
                raise UserError(
                    f"join.{name}: {start!r} must be a share of the run below 1, or a whole number of steps"
                )
        return starts

    def _from_ranges(self, space: Mapping[str, Any], name: str, rng: Optional[random.Random]) -> Subnet:
        """A subnet drawn from the ranges, or the low end of all ranges if ``rng`` is None."""
        depth = _draw_count(space["depth"], self.table.num_layers, rng)
        layers = set(keep_order(self.table.num_layers, space["drop"])[:depth])
        kinds = {(c.key.layer, c.key.module): c.kind for c in self.table.components}
        shared: dict[tuple[str, int], int] = {}
        counts = {}
        for place, total in module_sizes(self.table).items():
            count = _draw_count(space.get(kinds[place], (1.0, 1.0)), total, rng)
            if not space["per_layer"]:
                count = shared.setdefault((place[1], total), count)
            counts[place] = count if place[0] in layers else 0
        return first_components(name, counts)


def _draw_count(bounds: Range, total: int, rng: Optional[random.Random]) -> int:
    low, high = (round_share(share, total) for share in bounds)
    return low if rng is None else rng.randint(low, high)


def _check_number_of_subnets(number: Any, space: Optional[Mapping[str, Any]]) -> None:
    if number == ALL and space:
        raise UserError(f"random_subnets: {ALL} is for named sizes, not for a search_space; give a number from 0 to 8")
    if number != ALL and not (is_number(number) and isinstance(number, int) and 0 <= number <= 8):
        raise UserError(f"random_subnets: {number!r} must be a whole number from 0 to 8, or {ALL}")


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
