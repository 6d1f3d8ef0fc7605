"""Search for subnets by evolution: who is proposed next, what is worth keeping, and how much of the ideal a search found.

Nothing here scores or stores: :mod:`espnet_todm.search.evaluate` and :mod:`espnet_todm.search.study` do.
The best of each generation are picked by NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from espnet_todm.components import ComponentTable, Key, Subnet
from espnet_todm.search.space import Budgets, Genes, SearchSpace
from espnet_todm.sizes import ROUNDING, uniform

TRIES = 50  # for a subnet that is new, before one is proposed again
Known = Collection[frozenset[Key]]
Values = Sequence[float]  # of each objective; less is better


@dataclass(frozen=True)
class Trial:
    """A subnet that was scored. ``by``: who proposed it; ``scores`` and ``costs`` by name, less being better."""

    number: int
    by: str
    subnet: Subnet
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    seconds: float = 0.0

    def values(self, objectives: Iterable[str]) -> tuple[float, ...]:
        """The amounts of these scores and costs."""
        amounts = {**self.costs, **self.scores}
        return tuple(amounts[name] for name in objectives)


class Proposal(NamedTuple):
    """Genes to try and who proposed them."""

    genes: Genes
    by: str


class Parent(NamedTuple):
    """A scored subnet that may have children."""

    number: int
    genes: Mapping[str, int]
    values: Values


class Proposer:
    """Proposes subnets of a space within budgets, as a pure function of (seed, index, what is known, parents).

    Args:
        starts: subnets to begin with, by name; those that the space does not hold or a budget forbids are left out.
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
        """Number ``index`` of the first generation: the starting points, then random subnets."""
        if index < len(self.starts):
            return self.starts[index]
        return self._new(random.Random(f"draw {self.seed} {index}"), known, self._draw)

    def child(self, index: int, known: Known, parents: Sequence[Parent]) -> Proposal:
        """A subnet bred from two parents and changed in a few genes."""

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
    """Each gene of either parent. Half of the time the genes of a layer stay together."""
    together = rng.random() < 0.5
    first: dict[str, bool] = {}
    for name in one:
        group = name.partition(".")[0] if together else name
        first.setdefault(group, rng.random() < 0.5)
    return {name: (one if first[name.partition(".")[0] if together else name] else other)[name] for name in one}


def _mutated(genes: Mapping[str, int], bounds: Mapping[str, tuple[int, int]], rng: random.Random) -> Genes:
    """A few genes with other values: half of the time one step away, otherwise any. At least one is changed."""
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
    """The named sizes, and depth with all widths but the convolutions' scaled alike to tenths."""
    kinds = [kind for kind in table.kinds if kind != "conv"]
    scaled = (uniform(f"uniform_{step / 10:g}", table, step / 10, kinds) for step in range(10, 0, -1))
    named = {f"size {name}": subnet for name, subnet in sizes.items()}
    return {**named, **{subnet.name.replace("_", " "): subnet for subnet in scaled}}


def dominates(one: Values, other: Values) -> bool:
    """Whether ``one`` is no worse anywhere and better somewhere."""
    return all(a <= b for a, b in zip(one, other)) and any(a < b for a, b in zip(one, other))


def pareto_front(trials: Iterable[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that no other dominates, one for each set of components and for each point, the best score first."""
    front: list[Trial] = []
    # In this order nothing dominates what came before it.
    for trial in sorted(trials, key=lambda trial: (trial.values(objectives), trial.number)):
        values = trial.values(objectives)
        if not any(kept.values(objectives) == values or dominates(kept.values(objectives), values) for kept in front):
            front.append(trial)
    return front


def hypervolume(points: Iterable[Values], reference: Values) -> float:
    """The share of the box between 0 and ``reference`` that the points dominate, in [0, 1]; all values are above 0."""
    scaled = [tuple(v / r for v, r in zip(point, reference)) for point in points]
    return _volume([point for point in scaled if all(value < 1 for value in point)])


def _volume(points: list[tuple[float, ...]]) -> float:
    """By slices along the first axis: between one point and the next, those before it count in the other axes."""
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
    """The trial with the best score that costs no more than a budget; of equals the cheapest."""
    within = [trial for trial in trials if trial.costs[criterion] <= budget * (1 + ROUNDING)]
    return min(within, key=lambda trial: (trial.scores[score], trial.costs[criterion], trial.number), default=None)
