"""A subnet is a set of components of its supernet.

A component is the smallest part that can be removed from an encoder: a chunk of feed-forward units, an attention head,
a convolution module or a group of its channels. Training, costing, slicing and extraction are written once, for any
set. Methods only differ in how they select the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from espnet_todm.errors import UserError

FULL = "full"
CRITERIA = ("params", "flops", "latency")
MEASURE = "python -m espnet_todm.bin.bench components --config CONFIG --output component_latency.json"


@dataclass(frozen=True)
class Cost:
    """Parameters (a count), FLOPs (2 x multiply-accumulates, per second of speech) and latency.

    Latency is in seconds of compute per second of speech on the machine that it was measured on; 0 if it was not
    measured.
    """

    params: int = 0
    flops: float = 0.0
    latency: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops, self.latency + other.latency)

    def by(self, criterion: str) -> float:
        """The value of one criterion. Raises UserError for an unknown one."""
        check_criterion(criterion)
        return float(getattr(self, criterion))


def check_criterion(criterion: str) -> None:
    """Raises UserError for an unknown one."""
    if criterion not in CRITERIA:
        raise UserError(f"criterion: {criterion!r} is unknown; allowed: {', '.join(CRITERIA)}")


@dataclass(frozen=True, order=True)
class Key:
    """The position of a component: component ``index`` of ``module`` in block ``layer``."""

    layer: int
    module: str
    index: int


@dataclass(frozen=True)
class Component:
    """One removable part: its position, its kind (ffn, heads, conv, ...) and its cost."""

    key: Key
    kind: str
    cost: Cost


@dataclass(frozen=True)
class Subnet:
    """A named set of components. Two subnets are the same function if their sets are equal; the name is a label."""

    name: str
    components: frozenset[Key] = field(repr=False)

    @cached_property
    def layers(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """Keep indices, ascending, by layer and module; modules that keep nothing are absent."""
        layers: dict[int, dict[str, tuple[int, ...]]] = {}
        for key in sorted(self.components):
            modules = layers.setdefault(key.layer, {})
            modules[key.module] = (*modules.get(key.module, ()), key.index)
        return layers

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        """``{layer: {module: [indices]}}`` with string keys, as stored in cards."""
        return {str(layer): {m: list(i) for m, i in modules.items()} for layer, modules in self.layers.items()}

    @staticmethod
    def from_json(name: str, kept: Any) -> Subnet:
        """The inverse of :meth:`to_json`. Raises UserError if ``kept`` has another structure."""
        try:
            keys = [
                Key(int(la), str(m), int(i)) for la, modules in kept.items() for m, ix in modules.items() for i in ix
            ]
        except (AttributeError, TypeError, ValueError):
            raise UserError(f"subnet {name!r}: 'kept' must be {{layer: {{module: [indices]}}}}") from None
        return Subnet(name, frozenset(keys))


@dataclass(frozen=True)
class ComponentTable:
    """All components of an encoder with their costs, and the costs of the other parts.

    ``module_costs`` counts once for a module that keeps any component (its LayerNorm and output bias), ``layer_costs``
    once for a block that keeps any (its final LayerNorm), ``rest`` always (subsampling, output layer).
    """

    components: tuple[Component, ...]
    module_costs: Mapping[tuple[int, str], Cost]
    layer_costs: Mapping[int, Cost]
    rest: Cost

    @cached_property
    def by_key(self) -> dict[Key, Component]:
        return {component.key: component for component in self.components}

    @property
    def num_layers(self) -> int:
        return len(self.layer_costs)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of components in order of first appearance."""
        return tuple(dict.fromkeys(component.kind for component in self.components))

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria of this table. Latency is one of them if it was measured: the rest always runs, so its latency
        is then above 0.
        """
        return tuple(criterion for criterion in CRITERIA if criterion != "latency" or self.rest.latency > 0)

    def check(self, criterion: str) -> None:
        """Raises UserError for a criterion that is unknown, or was not measured for this table."""
        check_criterion(criterion)
        if criterion not in self.criteria:
            raise UserError(
                f"criterion: {criterion!r} has not been measured for this encoder; run {MEASURE} and set"
                f" encoder_conf: latency_table: component_latency.json"
            )

    def amount(self, components: Subnet | Iterable[Key], criterion: str) -> float:
        """The cost of a set by one criterion. Raises UserError as :meth:`check` and :meth:`cost` do."""
        self.check(criterion)
        return self.cost(components).by(criterion)

    def full(self) -> Subnet:
        """The set of all components: the supernet itself."""
        return Subnet(FULL, frozenset(self.by_key))

    def cost(self, components: Subnet | Iterable[Key]) -> Cost:
        """Exact cost of a set. Raises UserError if the set has a component that this encoder does not have."""
        keys = components.components if isinstance(components, Subnet) else frozenset(components)
        unknown = keys - self.by_key.keys()
        if unknown:
            first = min(unknown)
            name = components.name if isinstance(components, Subnet) else "of components"
            raise UserError(
                f"subnet {name}: component {first.index} of {first.module} in layer {first.layer} is not in this"
                f" encoder ({self.num_layers} layers, {len(self.components)} components)"
            )
        return self.running_cost([keys])[0]

    def running_cost(self, groups: Iterable[Iterable[Key]]) -> list[Cost]:
        """Exact costs of the first group of components, of the first two groups, and so on. All must belong to this
        encoder.
        """
        total, places, layers, spent = self.rest, set(), set(), []
        for group in groups:
            for key in group:
                total = total + self.by_key[key].cost
                place = key.layer, key.module
                if place not in places:
                    places.add(place)
                    total = total + self.module_costs[place]
                if key.layer not in layers:
                    layers.add(key.layer)
                    total = total + self.layer_costs[key.layer]
            spent.append(total)
        return spent

    def share(self, subnet: Subnet, criterion: str) -> float:
        """The cost of a subnet as a share of the cost of the full set, in (0, 1]."""
        return self.amount(subnet, criterion) / self.amount(self.full(), criterion)
