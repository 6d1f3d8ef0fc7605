"""Measured latency of an encoder's components: the table, its JSON file, and the component costs that follow from it.

On the measured machine, a module with k components takes ``fixed + per_component * k`` seconds of compute per second of
speech. :mod:`espnet_todm.bench.components.measure` does the measurement.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from espnet_todm.components import MEASURE, ComponentTable, Cost
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_json, write_json

FORMAT = "espnet_todm.encoders.latency/2"


@dataclass(frozen=True)
class Line:
    """Latency of a module in seconds per second of speech: ``fixed``, and ``per_component`` for each kept component."""

    fixed: float
    per_component: float


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of one encoder on one machine, in seconds of compute per second of speech.

    ``layers``: the final norm of each block. ``rest``: input layer and output norm. ``machine`` and ``report`` (utterance
    length, rounds, measured points, errors of the fit) are only for readers.
    """

    fingerprint: str
    modules: Mapping[tuple[int, str], Line]
    layers: Mapping[int, float]
    rest: float
    machine: Mapping[str, Any]
    report: Mapping[str, Any]

    def apply(self, table: ComponentTable) -> ComponentTable:
        """A copy of the encoder's component table with these latencies."""
        components = (
            replace(c, cost=replace(c.cost, latency=self.modules[c.key.layer, c.key.module].per_component))
            for c in table.components
        )
        modules = {p: replace(cost, latency=self.modules[p].fixed) for p, cost in table.module_costs.items()}
        layers = {layer: replace(cost, latency=self.layers[layer]) for layer, cost in table.layer_costs.items()}
        return ComponentTable(tuple(components), modules, layers, replace(table.rest, latency=self.rest))


def fingerprint(encoder: nn.Module, table: ComponentTable) -> str:
    """SHA-256 of the properties that determine an encoder's speed: component costs, parameter shapes, types of layers.

    It does not depend on weights, sizes or dropout, so one measurement serves every training of the same encoder.
    """
    costs = [[c.key.layer, c.key.module, c.key.index, *_counts(c.cost)] for c in table.components]
    parameters = encoder.named_parameters()
    shapes = [[name, list(parameter.shape)] for name, parameter in parameters if not name.startswith("own.")]
    leaves = [
        [name, type(module).__name__]
        for name, module in encoder.named_modules()
        if not any(module.children()) and not _of_sizes(name) and not isinstance(module, nn.Dropout)
    ]
    text = json.dumps([costs, _counts(table.rest), shapes, leaves])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _of_sizes(name: str) -> bool:
    """Whether a module has what sizes own, which does not change the speed."""
    return "size_norms" in name or name == "own" or name.startswith("own.")


def _counts(cost: Cost) -> list[int]:
    return [cost.params, round(cost.flops)]


def save_latency(path: PathLike, table: LatencyTable) -> None:
    """Write the table as JSON, atomically, with modules grouped by layer."""
    modules: dict[str, dict[str, dict[str, float]]] = {}
    for (layer, name), line in table.modules.items():
        entry = {"fixed": line.fixed, "per_component": line.per_component}
        modules.setdefault(str(layer), {})[name] = entry
    stored = {
        "format": FORMAT,
        "fingerprint": table.fingerprint,
        "machine": dict(table.machine),
        "unit": "seconds of compute per second of speech",
        "rest": table.rest,
        "layers": {str(layer): seconds for layer, seconds in table.layers.items()},
        "modules": modules,
        "report": dict(table.report),
    }
    write_json(path, stored)


def load_latency(path: PathLike, encoder: nn.Module, table: ComponentTable) -> LatencyTable:
    """Read the latency table of this encoder from ``path``.

    Raises UserError when the file is missing or damaged, has another format, or was measured on another encoder.
    """
    stored = read_json(path)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(f"latency_table: {path} is no latency table of format {FORMAT}; measure one with {MEASURE}")
    if stored.get("fingerprint") != fingerprint(encoder, table):
        raise UserError(
            f"latency_table: {path} was measured on an encoder of another shape; measure this with {MEASURE}"
        )
    try:
        measured = _parse(stored)
        measured.apply(table)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"latency_table: {path} is damaged ({type(error).__name__}: {error})") from None
    return measured


def _parse(stored: Mapping[str, Any]) -> LatencyTable:
    modules = {
        (int(layer), str(name)): Line(_seconds(line["fixed"]), _seconds(line["per_component"]))
        for layer, lines in stored["modules"].items()
        for name, line in lines.items()
    }
    layers = {int(layer): _seconds(seconds) for layer, seconds in stored["layers"].items()}
    rest = _seconds(stored["rest"])
    if not rest > 0:
        raise ValueError("rest must be above 0")
    return LatencyTable(stored["fingerprint"], modules, layers, rest, stored["machine"], stored["report"])


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is no time")
    return seconds
