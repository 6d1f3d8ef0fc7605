"""Evolutionary search for subnets: proposals, Pareto sets, and the hypervolume of what a search found.

:mod:`espnet_todm.search.evaluate` scores the subnets and :mod:`espnet_todm.search.study` stores the trials.
NSGA-II selects the parents of each generation (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from espnet_todm.components import ComponentTable, Key, Subnet
from espnet_todm.search.space import Budgets, Genes, SearchSpace
from espnet_todm.sizes import ROUNDING, uniform

TRIES = 50  # attempts to propose a new subnet before a known one is accepted
Known = Collection[frozenset[Key]]
Values = Sequence[float]  # one value for each objective; lower is better


@dataclass(frozen=True)
class Trial:
    """A scored subnet. ``by``: origin of the proposal. ``scores`` and ``costs``: by name, lower is better."""

    number: int
    by: str
    subnet: Subnet
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    seconds: float = 0.0

    def values(self, objectives: Iterable[str]) -> tuple[float, ...]:
        """The values of these scores and costs."""
        amounts = {**self.costs, **self.scores}
        return tuple(amounts[name] for name in objectives)


class Proposal(NamedTuple):
    """Genes to try, and the origin of the proposal."""

    genes: Genes
    by: str


class Parent(NamedTuple):
    """A scored subnet that children can be bred from."""

    number: int
    genes: Mapping[str, int]
    values: Values


class Proposer:
    """Proposes subnets of a space within budgets, as a pure function of (seed, index, known subnets, parents).

    Args:
        starts: initial subnets by name. Subnets outside the space or above a budget are left out.
    """

    def __init__(self, space: SearchSpace, budgets: Budgets, seed: int, starts: Mapping[str, Subnet]) -> None:
        self.space, self.budgets, self.seed = space, budgets, seed
        self.starts: list[Proposal] = []
        seen: set[frozenset[Key]] = set()
        for name, subnet in starts.items():
            genes = space.genes(subnet)
            if genes is not None and space.fits(genes, budgets) and subnet.components not in seen:
                seen.add(subnet.components)
                self.starts.append(Proposal(genes, name))

    def first(self, index: int, known: Known) -> Proposal:
        """Proposal ``index`` of the first generation: first the starting points, then random subnets."""
        if index < len(self.starts):
            return self.starts[index]
        return self._new(random.Random(f"draw {self.seed} {index}"), known, self._draw)

    def child(self, index: int, known: Known, parents: Sequence[Parent]) -> Proposal:
        """A subnet from the crossover of two parents, with a few mutated genes."""

        def breed(rng: random.Random) -> Proposal:
            one, other = _better_of_two(parents, rng), _better_of_two(parents, rng)
            genes = _mutated(_crossed(one.genes, other.genes, rng), self.space.bounds, rng)
            by = f"trials {one.number} and {other.number}" if one != other else f"trial {one.number}"
            return Proposal(self.space.repair(genes, self.budgets, rng), by)

        return self._new(random.Random(f"child {self.seed} {index}"), known, breed)

    def _draw(self, rng: random.Random) -> Proposal:
        return Proposal(self.space.repair(self.space.draw(rng), self.budgets, rng), "random")

    def _new(self, rng: random.Random, known: Known, propose: Callable[[random.Random], Proposal]) -> Proposal:
        proposal = propose(rng)
        for _ in range(TRIES):
            if self.space.subnet(proposal.genes).components not in known:
                break
            proposal = propose(rng)
        return proposal


def _better_of_two(parents: Sequence[Parent], rng: random.Random) -> Parent:
    one, other = rng.choice(parents), rng.choice(parents)
    return other if dominates(other.values, one.values) else one


def _crossed(one: Mapping[str, int], other: Mapping[str, int], rng: random.Random) -> Genes:
    """Crossover: each gene comes from a random parent. With probability 0.5 the genes of a layer stay together."""
    together = rng.random() < 0.5
    first: dict[str, bool] = {}
    for name in one:
        group = name.partition(".")[0] if together else name
        first.setdefault(group, rng.random() < 0.5)
    return {name: (one if first[name.partition(".")[0] if together else name] else other)[name] for name in one}


def _mutated(genes: Mapping[str, int], bounds: Mapping[str, tuple[int, int]], rng: random.Random) -> Genes:
    """Mutation of one or more genes. A new value is one step away with probability 0.5, otherwise any other value."""
    changed = dict(genes)
    names = [name for name, (low, high) in bounds.items() if high > low]
    count = 1
    while count < len(names) and rng.random() < 0.6:
        count += 1
    for name in rng.sample(names, min(count, len(names))):
        low, high = bounds[name]
        near = rng.random() < 0.5
        others = [v for v in range(low, high + 1) if v != genes[name] and (not near or abs(v - genes[name]) == 1)]
        changed[name] = rng.choice(others)
    return changed


def starting_points(table: ComponentTable, sizes: Mapping[str, Subnet]) -> dict[str, Subnet]:
    """The named sizes, and uniform scalings (1.0, 0.9, ..., 0.1) of depth and of all widths except the convolutions'."""
    kinds = [kind for kind in table.kinds if kind != "conv"]
    scaled = (uniform(f"uniform_{step / 10:g}", table, step / 10, kinds) for step in range(10, 0, -1))
    named = {f"size {name}": subnet for name, subnet in sizes.items()}
    return {**named, **{subnet.name.replace("_", " "): subnet for subnet in scaled}}


def dominates(one: Values, other: Values) -> bool:
    """Whether ``one`` is not worse in any objective and better in at least one."""
    return all(a <= b for a, b in zip(one, other)) and any(a < b for a, b in zip(one, other))


def pareto_front(trials: Iterable[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that no other trial dominates, best score first. Of trials with equal values only the first is kept."""
    front: list[Trial] = []
    # In this order no trial dominates an earlier one.
    for trial in sorted(trials, key=lambda trial: (trial.values(objectives), trial.number)):
        values = trial.values(objectives)
        if not any(kept.values(objectives) == values or dominates(kept.values(objectives), values) for kept in front):
            front.append(trial)
    return front


def hypervolume(points: Iterable[Values], reference: Values) -> float:
    """Share of the box between 0 and ``reference`` that the points dominate, in [0, 1]. All values must be above 0."""
    scaled = [tuple(v / r for v, r in zip(point, reference)) for point in points]
    return _volume([point for point in scaled if all(value < 1 for value in point)])


def _volume(points: list[tuple[float, ...]]) -> float:
    """Sum over slices along the first axis. A slice ends at the next point; all earlier points dominate parts of it."""
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return 1.0 - min(point[0] for point in points)
    points = sorted(points)
    ends = [*(point[0] for point in points[1:]), 1.0]
    volume = 0.0
    for count, (point, end) in enumerate(zip(points, ends), 1):
        if end > point[0]:
            volume += (end - point[0]) * _volume([other[1:] for other in points[:count]])
    return volume


def best_under(trials: Iterable[Trial], score: str, criterion: str, budget: float) -> Optional[Trial]:
    """The trial with the best score within a budget, or None. Of equal scores, the cheapest trial."""
    within = [trial for trial in trials if trial.costs[criterion] <= budget * (1 + ROUNDING)]
    return min(within, key=lambda trial: (trial.scores[score], trial.costs[criterion], trial.number), default=None)
