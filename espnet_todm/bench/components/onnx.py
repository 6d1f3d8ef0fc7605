"""The parts of an encoder as ONNX graphs in onnxruntime, in the same form as in an exported model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from tqdm import tqdm

from espnet_todm.bench.components.parts import Part, Probe
from espnet_todm.deploy.forms.base import Graph
from espnet_todm.deploy.onnx.export import OPSET, write_graph
from espnet_todm.deploy.onnx.graph import exportable
from espnet_todm.deploy.runtime.onnx import Session
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.util.optional import needed


def converted(encoder: SupernetEncoder) -> SupernetEncoder:
    """A copy of an encoder in its form for export."""
    return exportable(encoder, encoder.name, {})


def onnx_calls(timed: Mapping[Probe, Part], threads: int) -> dict[Probe, Callable[[], object]]:
    """The parts as calls of onnxruntime with ``threads`` threads. Raises UserError if a package is missing."""
    onnx = needed("onnx")
    calls: dict[Probe, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        for probe, part in tqdm(timed.items(), desc="export", unit="graph", disable=None):
            write_graph(_graph(part), path, OPSET, {}, onnx)
            session, values = Session(path, threads), dict(zip(_names(part), part.inputs))
            # Only the session's inputs: the exporter removes inputs without effect.
            inputs = [values[entry.name].numpy() for entry in session.inputs]
            calls[probe] = lambda session=session, inputs=inputs: session(*inputs)  # type: ignore[misc]
    return calls


def _graph(part: Part) -> Graph:
    inputs = {
        name: {dimension: f"{name}_{dimension}" for dimension in dimensions}
        for name, dimensions in zip(_names(part), part.varying)
    }
    return Graph("part", part.module.eval(), part.inputs, inputs, {"output": {}}, {})


def _names(part: Part) -> list[str]:
    return [f"input{number}" for number in range(len(part.inputs))]
