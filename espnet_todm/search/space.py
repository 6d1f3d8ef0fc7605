"""Search spaces: subnets are encoded as integers (genes), and can be repaired to fit budgets."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Optional

from espnet_todm.components import ComponentTable, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.sizes import ROUNDING, first_components, keep_order, module_sizes, round_share
from espnet_todm.util.checks import check_choice
from espnet_todm.util.units import format_amount

GRANULARITIES = ("uniform", "layer", "component")
Genes = dict[str, int]
Budgets = Mapping[str, float]  # criterion -> maximum cost of a subnet


class SearchSpace(ABC):
    """A set of subnets, each encoded by genes. A larger value of a gene never keeps fewer components.

    ``bounds``: gene -> its minimum and maximum.
    """

    def __init__(self, table: ComponentTable, granularity: str, bounds: Mapping[str, tuple[int, int]]) -> None:
        self.table, self.granularity, self.bounds = table, granularity, dict(bounds)

    @abstractmethod
    def subnet(self, genes: Mapping[str, int], name: str = "") -> Subnet:
        """The subnet that the genes encode."""

    @abstractmethod
    def genes(self, subnet: Subnet) -> Optional[Genes]:
        """The genes of a subnet, or None if it is outside the space."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Genes:
        """Random genes. Small and large costs are both likely."""

    def least(self) -> list[Genes]:
        """Genes of the minimal nonempty subnets. They include the cheapest subnet by every criterion."""
        lowest = {name: low for name, (low, _) in self.bounds.items()}
        raised = [{**lowest, name: low + 1} for name, (low, high) in self.bounds.items() if high > low]
        return [genes for genes in raised if self.subnet(genes).components]

    def costs(self, genes: Mapping[str, int]) -> dict[str, float]:
        """Cost of the subnet in every criterion of the table."""
        cost = self.table.cost(self.subnet(genes))
        return {criterion: cost.by(criterion) for criterion in self.table.criteria}

    def fits(self, genes: Mapping[str, int], budgets: Budgets) -> bool:
        """Whether the subnet is not empty and within the budgets."""
        subnet = self.subnet(genes)
        return bool(subnet.components) and fits(self.table, subnet, budgets)

    def repair(self, genes: Mapping[str, int], budgets: Budgets, rng: random.Random) -> Genes:
        """Decrease random genes by 1, larger genes more often, until the subnet is within the budgets.

        If all genes reach their minimum first, return the first minimal subnet that is within the budgets.
        """
        repaired = dict(genes)
        while not self.fits(repaired, budgets):
            room = {name: value - self.bounds[name][0] for name, value in repaired.items()}
            if not any(room.values()):
                return next(genes for genes in self.least() if self.fits(genes, budgets))
            repaired[rng.choices(list(room), list(room.values()))[0]] -= 1
        return repaired


class GroupSpace(SearchSpace):
    """Each gene is the number of kept components in a group. The first components of the group are kept."""

    def __init__(self, table: ComponentTable, granularity: str, groups: Mapping[str, tuple[Key, ...]]) -> None:
        super().__init__(table, granularity, {name: (0, len(keys)) for name, keys in groups.items()})
        self.groups = groups

    def subnet(self, genes: Mapping[str, int], name: str = "") -> Subnet:
        return Subnet(name, frozenset(key for group, keys in self.groups.items() for key in keys[: genes[group]]))

    def genes(self, subnet: Subnet) -> Optional[Genes]:
        found = {name: len(subnet.components.intersection(keys)) for name, keys in self.groups.items()}
        return found if self.subnet(found).components == subnet.components else None

    def draw(self, rng: random.Random) -> Genes:
        density = rng.random()
        return {name: sum(rng.random() < density for _ in keys) for name, keys in self.groups.items()}


class UniformSpace(SearchSpace):
    """Genes are the depth and, for each kind of component, one share for all layers, as in sizes of a configuration."""

    def __init__(self, table: ComponentTable) -> None:
        self._kinds = {(c.key.layer, c.key.module): c.kind for c in table.components}
        self._totals = module_sizes(table)
        most = {
            kind: max(self._totals[place] for place, of in self._kinds.items() if of == kind) for kind in table.kinds
        }
        bounds = {"depth": (1, table.num_layers), **{kind: (0, total) for kind, total in most.items()}}
        super().__init__(table, "uniform", bounds)
        self._order = keep_order(table.num_layers)

    def subnet(self, genes: Mapping[str, int], name: str = "") -> Subnet:
        layers = set(self._order[: genes["depth"]])
        shares = {kind: genes[kind] / self.bounds[kind][1] for kind in self.table.kinds}
        return first_components(
            name,
            {
                place: round_share(shares[self._kinds[place]], total)
                for place, total in self._totals.items()
                if place[0] in layers
            },
        )

    def genes(self, subnet: Subnet) -> Optional[Genes]:
        for depth in range(1, self.table.num_layers + 1):
            found: Genes = {"depth": depth}
            nothing = dict.fromkeys(self.table.kinds, 0)
            for kind in self.table.kinds:
                wanted = {key for key in subnet.components if self._kinds.get((key.layer, key.module)) == kind}
                for value in range(self.bounds[kind][1] + 1):
                    if self.subnet({**nothing, "depth": depth, kind: value}).components == wanted:
                        found[kind] = value
                        break
            if len(found) == len(self.bounds) and self.subnet(found).components == subnet.components:
                return found
        return None

    def least(self) -> list[Genes]:
        nothing = {"depth": 1, **dict.fromkeys(self.table.kinds, 0)}
        raised = [{**nothing, kind: 1} for kind in self.table.kinds]
        return [genes for genes in raised if self.subnet(genes).components] or super().least()

    def draw(self, rng: random.Random) -> Genes:
        return {name: rng.randint(low, high) for name, (low, high) in self.bounds.items()}


def make_space(table: ComponentTable, granularity: str) -> SearchSpace:
    """Build the space of a granularity. Raises UserError for an unknown granularity. Allowed are

    - ``uniform``: the depth, and one share for each kind of component,
    - ``layer``: for each module of each block, the number of its first components to keep,
    - ``component``: any set of components.
    """
    if granularity == "uniform":
        return UniformSpace(table)
    check_choice("granularity", granularity, GRANULARITIES)
    groups: dict[str, tuple[Key, ...]] = {}
    for component in table.components:
        key = component.key
        name = f"{key.layer}.{key.module}" + (f".{key.index}" if granularity == "component" else "")
        groups[name] = (*groups.get(name, ()), key)
    return GroupSpace(table, granularity, groups)


def fits(table: ComponentTable, subnet: Subnet, budgets: Budgets) -> bool:
    """Whether a subnet is within the budgets."""
    cost = table.cost(subnet)
    return all(cost.by(criterion) <= budget * (1 + ROUNDING) for criterion, budget in budgets.items())


def check_budgets(space: SearchSpace, budgets: Budgets) -> None:
    """Raises UserError, with the feasible range, if no subnet of the space is within a budget, or none is within all."""
    least = [space.costs(genes) for genes in space.least()]
    full = space.table.full()
    for criterion, budget in budgets.items():
        space.table.check(criterion)
        lowest = min(costs[criterion] for costs in least)
        if budget * (1 + ROUNDING) < lowest:
            highest = space.table.amount(full, criterion)
            raise UserError(
                f"budget: {criterion}={format_amount(budget)} is infeasible; subnets of this supernet cost"
                f" {format_amount(lowest)} to {format_amount(highest)}"
            )
    if not any(space.fits(genes, budgets) for genes in space.least()):
        wanted = " and ".join(f"{criterion}={format_amount(budget)}" for criterion, budget in budgets.items())
        cheapest = "; ".join(
            " with ".join(f"{criterion}={format_amount(costs[criterion])}" for criterion in budgets)
            for costs in (min(least, key=lambda costs: costs[by]) for by in budgets)
        )
        raise UserError(f"budget: no subnet has {wanted} at once; the cheapest by each have {cheapest}")
