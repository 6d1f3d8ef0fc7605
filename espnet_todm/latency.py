"""The third cost beside parameters and FLOPs: seconds that components take on a machine, as measured there.

:mod:`espnet_todm.deploy.latency` measures; this is the file it writes, and how an encoder's table of components takes it in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from espnet_todm.components import Component, ComponentTable, Cost
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike, read_json, write_json

FORMAT = "espnet_todm.latency/1"
COMMAND = "python -m espnet_todm.bin.measure_latency"


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of computing per second of speech.

    Args:
        encoder: :func:`fingerprint` of the encoder that was measured.
        machine: processor, threads, version of torch, date.
        seconds: length of the utterance that was computed.
        modules: "layer/module" -> (fixed, each component): what a module takes that keeps k components is fixed + k * each.
        layers: of each block, besides its modules.
        rest: of what runs in every subnet.
        check: (share of the parameters, predicted, measured) of some whole subnets.
    """

    encoder: str
    machine: Mapping[str, Any]
    seconds: float
    modules: Mapping[str, tuple[float, float]]
    layers: Sequence[float]
    rest: float
    check: Sequence[tuple[float, float, float]] = ()

    def largest_error(self) -> float:
        """Of the predictions that were checked, relative to what was measured."""
        return max((abs(predicted / measured - 1) for _, predicted, measured in self.check), default=0.0)

    def write(self, path: PathLike) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    def applied(self, table: ComponentTable) -> ComponentTable:
        """The table with the latency of everything. Raises UserError when it is another encoder's."""
        if fingerprint(table) != self.encoder:
            raise UserError(
                f"latency_table: it was measured on an encoder of other dimensions; measure this one with {COMMAND}"
            )

        def timed(component: Component) -> Component:
            each = self.modules[f"{component.key.layer}/{component.key.module}"][1]
            return replace(component, cost=replace(component.cost, latency=each))

        return ComponentTable(
            tuple(timed(component) for component in table.components),
            {
                (la, module): replace(cost, latency=self.modules[f"{la}/{module}"][0])
                for (la, module), cost in table.module_costs.items()
            },
            {layer: replace(cost, latency=self.layers[layer]) for layer, cost in table.layer_costs.items()},
            replace(table.rest, latency=self.rest),
        )


def read_latency(path: PathLike) -> LatencyTable:
    """Raises UserError when the file is missing, or is no table of latencies."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"latency_table: {path} is no {FORMAT}; {COMMAND} writes one")
    try:
        return LatencyTable(**{key: value for key, value in content.items() if key != "format"})
    except TypeError as error:
        raise UserError(f"latency_table: {path} is damaged: {error}") from None


def fingerprint(table: ComponentTable) -> str:
    """SHA-256 of an encoder's dimensions, whatever its weights and its options of training are."""

    def dimensions(cost: Cost) -> tuple[int, float]:
        return cost.params, round(cost.flops)

    facts = [
        [(c.key.layer, c.key.module, c.key.index, *dimensions(c.cost)) for c in table.components],
        [(*place, *dimensions(cost)) for place, cost in table.module_costs.items()],
        dimensions(table.rest),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
