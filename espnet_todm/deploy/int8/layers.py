"""The linear layers of exported graphs, which int8 quantizes, and the ranges of their activations on speech."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.deploy.onnx.quantize import layer_of
from espnet_todm.deploy.onnx.rewrite import GraphView, name_nodes
from espnet_todm.deploy.runtime.onnx import Session

OUTLIER = 8.0  # an outlier channel's largest value is so many times the median channel's


@dataclass(frozen=True)
class Layer:
    """A linear layer of a graph.

    name: ``part/path/of/module/operator``. input: the tensor that it is applied to. parameters: of its weight.
    """

    name: str
    part: str
    input: str
    parameters: int


@dataclass
class Activation:
    """Values of a tensor (..., D) on speech: smallest and largest, and the largest absolute value of each channel (D,)."""

    low: float = np.inf
    high: float = -np.inf
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, value: np.ndarray) -> None:
        """Count the values of one run in."""
        rows = value.reshape(-1, value.shape[-1])
        if len(rows):
            self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))
            self.peaks = np.maximum(self.peaks, np.abs(rows).max(0))

    def outliers(self) -> dict[int, float]:
        """Channel -> how many times the median channel's largest value its own is, where that is OUTLIER or more."""
        ratios = self.peaks / max(float(np.median(self.peaks)), 1e-12)
        found = [int(i) for i in np.argsort(-ratios) if ratios[i] >= OUTLIER]
        return {channel: float(ratios[channel]) for channel in found}


def layers_of(part: str, path: Path) -> list[Layer]:
    """The linear layers of the float32 graph ``path``, in its order."""
    import onnx

    model = onnx.load(str(path))
    name_nodes(model)
    view = GraphView(model)
    weights = [(node, view.linear(node)) for node in model.graph.node]
    return [Layer(layer_of(part, one.name), part, one.input[0], w.size) for one, w in weights if w is not None]


class WatchedSession(Session):
    """A :class:`Session` that collects the values of some tensors, by name in ``seen``."""

    def __init__(self, path: Path, tensors: Iterable[str]) -> None:
        import onnx

        model: Any = onnx.load(str(path))
        outputs = [value.name for value in model.graph.output]
        given = {value.name for value in model.graph.input}
        self.seen = {name: Activation() for name in tensors}
        self._given = [name for name in self.seen if name in given]
        self._added = [name for name in self.seen if name not in given and name not in outputs]
        for name in self._added:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, str(Path(folder) / path.name))
            super().__init__(Path(folder) / path.name, 1)
        self.path = path

    def __call__(self, *values: np.ndarray) -> list[np.ndarray]:
        outputs = super().__call__(*values)
        shown = len(outputs) - len(self._added)
        for name, value in zip(self._added, outputs[shown:]):
            self.seen[name].add(value)
        for node, value in zip(self.inputs, values):
            if node.name in self._given:
                self.seen[node.name].add(value)
        return outputs[:shown]
