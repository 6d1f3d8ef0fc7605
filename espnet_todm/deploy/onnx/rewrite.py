"""Changes of ONNX graphs before quantisation: names for nodes, smoothing of activations, a penalty for the blank.

Smoothing moves outliers from activations, which have one scale for all channels, to weights (SmoothQuant,
https://arxiv.org/abs/2211.10438). Between a layer norm and the linear layers behind it, each channel of the norm's scale and
bias is divided by a factor, by which the layers' weights for that channel are multiplied. All factors are powers of two, so
the float32 graph computes the same bits as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Optional, cast

import numpy as np

LINEAR = ("MatMul", "Gemm")
STRONGEST = 8  # exponent of two of the largest factor; larger ones could leave float16's range


class GraphView:
    """Lookup in the top level of an ONNX graph, and replacement of constants.

    Attributes:
        makers: tensor -> the node that computes it.
        users: tensor -> pairs of node and input index. Tensors that a subgraph uses, and outputs of the graph, have None.
    """

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.constants = {value.name: value for value in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.users: dict[str, Optional[list[tuple[Any, int]]]] = {}
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                pairs = self.users.setdefault(name, [])
                if pairs is not None:
                    pairs.append((node, index))
        hidden = [name for node in self.graph.node for name in _inside(node)]
        for name in (*hidden, *(value.name for value in self.graph.output)):
            self.users[name] = None

    def constant(self, node: Any, index: int) -> Optional[np.ndarray]:
        """The constant float32 input of a node, if it is one."""
        from onnx import TensorProto, numpy_helper

        value = self.constants.get(node.input[index]) if index < len(node.input) else None
        if value is None or value.data_type != TensorProto.FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(value))

    def replace(self, node: Any, index: int, value: np.ndarray) -> None:
        """Give a node another constant input. Other nodes may share the old one, so that one is removed only when unused."""
        from onnx import numpy_helper

        old = node.input[index]
        name = f"{old}_of_{node.name or node.output[0]}_{index}"
        self.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        self.constants[name] = self.graph.initializer[-1]
        node.input[index] = name
        hidden = any(old in _inside(other) for other in self.graph.node)
        if not hidden and all(old not in other.input for other in self.graph.node):
            self.graph.initializer.remove(self.constants.pop(old))

    def linear(self, node: Any) -> Optional[np.ndarray]:
        """The weight (D, E) of a linear layer, whose inputs are (..., D), also if it is transposed in the graph; None for
        other nodes."""
        if node.op_type not in LINEAR or any(a.name == "transA" and a.i for a in node.attribute):
            return None
        weight = self.constant(node, 1)
        if weight is None or weight.ndim != 2:
            return None
        return weight.T if transposed(node) else weight

    def consumers(self, tensor: str) -> list[Any]:
        """The linear layers that use a tensor as their input; none if anything else uses it, too."""
        users = self.users.get(tensor) or []
        fit = all(index == 0 and self.linear(node) is not None for node, index in users)
        return [node for node, _ in users] if fit else []


def transposed(node: Any) -> bool:
    """Whether a Gemm's weight is (E, D) in the graph."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _inside(node: Any) -> Iterator[str]:
    """Names of tensors that the subgraphs of a node use."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _inside(inner)


def name_nodes(model: Any) -> None:
    """Give each node without a path as its name one: ``/output/operator``. torch's exporter names nodes by module."""
    for node in model.graph.node:
        if "/" not in node.name:
            node.name = f"/{node.name or node.output[0]}/{node.op_type}"


def smooth(model: Any, peaks: Mapping[str, np.ndarray]) -> int:
    """Smooth the inputs of linear layers behind layer norms. Returns the number of norms that were changed.

    peaks: tensor -> the largest absolute value of each of its channels (D,), measured on speech.
    """
    view, changed = GraphView(model), 0
    for tensor, peak in peaks.items():
        layers = view.consumers(tensor)
        affine = _affine(view, tensor) if layers else []
        if not affine:
            continue
        weights = [weight for weight in map(view.linear, layers) if weight is not None]
        rows = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
        factors = smoothing_factors(peak, rows)
        if (factors == 1).all():
            continue
        for node, index in affine:
            value = np.broadcast_to(cast(np.ndarray, view.constant(node, index)), factors.shape)
            view.replace(node, index, value / factors)
        for layer in layers:
            value = cast(np.ndarray, view.constant(layer, 1))
            view.replace(layer, 1, value * (factors if transposed(layer) else factors[:, None]))
        changed += 1
    return changed


def smoothing_factors(peaks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Powers of two (D,) near sqrt(peak / row), divided by their median, so that most channels stay as they are.

    peaks, rows: the largest absolute activation and weight of each channel (D,). Channels without any have factor 1.
    """
    used = (peaks > 0) & (rows > 0) & np.isfinite(peaks)
    if not used.any():
        return np.ones(len(peaks))
    exponents = np.zeros(len(peaks))
    exponents[used] = np.log2(peaks[used] / rows[used]) / 2
    exponents[used] -= np.median(exponents[used])
    factors: np.ndarray = np.exp2(np.clip(np.round(exponents), -STRONGEST, STRONGEST))
    return factors


def _affine(view: GraphView, tensor: str) -> list[tuple[Any, int]]:
    """The constants that scale a tensor's channels, as nodes and input indices: those of a layer norm, or of the Mul and Add
    that it consists of before opset 17. Empty if there are none."""
    node = view.makers.get(tensor)
    if node is None:
        return []
    if node.op_type == "LayerNormalization":
        found = [(node, index) for index in range(1, len(node.input))]
        return found if all(_vector(view.constant(*one)) for one in found) else []
    constants = [index for index in range(len(node.input)) if _vector(view.constant(node, index))]
    if node.op_type not in ("Mul", "Add") or len(constants) != 1:
        return []
    own, other = (node, constants[0]), node.input[1 - constants[0]]
    if node.op_type == "Mul":
        return [own]
    scale = _affine(view, other) if len(view.users.get(other) or []) == 1 else []
    return [*scale, own] if scale else []


def _vector(value: Optional[np.ndarray]) -> bool:
    return value is not None and value.ndim == 1


def add_blank_penalty(model: Any, blank: int, penalty: float) -> None:
    """Subtract ``penalty`` from the bias of the blank, if the graph has one, see :func:`has_blank_bias`."""
    view = GraphView(model)
    found = _output_bias(view)
    if found is not None:
        changed = np.array(view.constant(*found))
        changed[blank] -= penalty
        view.replace(*found, changed)


def has_blank_bias(model: Any) -> bool:
    """Whether the layer before the graph's first output, possibly with a softmax between them, has a constant bias."""
    return _output_bias(GraphView(model)) is not None


def _output_bias(view: GraphView) -> Optional[tuple[Any, int]]:
    """The bias of the layer before the first output, as a node and an input index."""
    node = view.makers.get(view.graph.output[0].name)
    while node is not None and node.op_type in ("LogSoftmax", "Identity", "Cast"):
        node = view.makers.get(node.input[0])
    if node is None or node.op_type not in ("Add", "Gemm"):
        return None
    biases = (2,) if node.op_type == "Gemm" else (0, 1)
    return next(((node, index) for index in biases if _vector(view.constant(node, index))), None)
