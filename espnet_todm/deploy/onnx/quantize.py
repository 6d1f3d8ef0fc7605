"""Quantisation of ONNX graphs: int8 weights and activations with onnxruntime's quantizer, or float16."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from torch import Tensor

from espnet_todm.deploy.onnx.recipe import SEVEN_BITS, UINT8, Recipe
from espnet_todm.deploy.onnx.rewrite import add_blank_penalty, name_nodes, smooth
from espnet_todm.deploy.onnx.state_space import FILTERS

DYNAMIC_OPERATORS = ("MatMul", "Gemm")
STATIC_OPERATORS = ("MatMul", "Gemm", "Conv")
CALIBRATION_UTTERANCES = 50


def to_int8(
    source: Path,
    target: Path,
    recipe: Optional[Recipe] = None,
    calibration: Optional[Iterable[Tensor]] = None,
    peaks: Optional[Mapping[str, np.ndarray]] = None,
    only: Optional[str] = None,
) -> None:
    """Quantize a float32 graph to int8. The name of ``source`` without suffix is the part's name in ``recipe.kept``.

    Args:
        recipe: default: plain dynamic quantisation.
        calibration: features (T, F) of utterances, for a static recipe; without them this graph is quantized dynamically.
        peaks: the largest absolute value of each channel of activations, for smoothing, see :func:`rewrite.smooth`.
        only: the only layer to quantize.
    """
    import onnx

    recipe, prepared = recipe or Recipe(), target.with_suffix(".prepared")
    model = onnx.load(str(source))
    name_nodes(model)
    if recipe.smooth:
        smooth(model, peaks or {})
    if recipe.blank_penalty:
        add_blank_penalty(model, 0, recipe.blank_penalty)
    onnx.save(model, str(prepared))
    try:
        with _quiet():
            if recipe.static and calibration is not None:
                _static(prepared, target, source.stem, recipe, calibration, only)
            else:
                _dynamic(prepared, target, source.stem, recipe, only)
    finally:
        prepared.unlink()


def _dynamic(source: Path, target: Path, part: str, recipe: Recipe, only: Optional[str]) -> None:
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        str(source), str(target), op_types_to_quantize=list(DYNAMIC_OPERATORS), **_choices(source, part, recipe, only)
    )


def _static(
    source: Path, target: Path, part: str, recipe: Recipe, calibration: Iterable[Tensor], only: Optional[str]
) -> None:
    from onnxruntime import quantization

    reader = _reader(quantization, source, calibration)
    quantization.quant_pre_process(str(source), str(source), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(source),
        str(target),
        reader,
        op_types_to_quantize=list(STATIC_OPERATORS),
        activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        **_choices(source, part, recipe, only),
    )


def _choices(source: Path, part: str, recipe: Recipe, only: Optional[str]) -> dict[str, Any]:
    """The options of a recipe as onnxruntime's quantizers name them."""
    import onnx
    from onnxruntime.quantization import QuantType

    names = [node.name for node in onnx.load(str(source)).graph.node]
    kept, alone = (_of_layers(names, part, layers) for layers in (recipe.kept, [only] if only else []))
    return {
        "weight_type": QuantType.QUInt8 if recipe.weights == UINT8 else QuantType.QInt8,
        "reduce_range": recipe.weights == SEVEN_BITS,
        "per_channel": recipe.per_channel,
        "nodes_to_exclude": kept,
        "nodes_to_quantize": alone or None,
    }


def _of_layers(names: Iterable[str], part: str, layers: Sequence[str]) -> list[str]:
    """The nodes of these layers, each also as onnxruntime renames it when it turns a Gemm into a MatMul and an Add."""
    own = [name for name in names if layer_of(part, name) in layers]
    return [*own, *(f"{name}_MatMul" for name in own)]


def layer_of(part: str, node: str) -> str:
    """The name of a linear layer: its part, and the node's name, which torch's exporter makes of modules and operator."""
    return part + node.replace("/MatMulAddFusion", "")  # onnxruntime's name for a MatMul and its bias


def to_fp16(source: Path, target: Path, onnx: Any) -> None:
    """Convert a float32 graph to float16. Inputs, outputs and operations that need the precision stay in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(str(source))
    with _quiet():
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=_precise(model)
        )
    onnx.save(half, str(target))


def _precise(model: Any) -> list[str]:
    """Names of nodes that need float32: those that compute angles of sines, and all of state spaces."""
    makers = {output: node for node in model.graph.node for output in node.output}
    names = {node.name for node in model.graph.node if FILTERS in node.name}
    waiting = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    while waiting:
        node = waiting.pop()
        if node.op_type != "Shape" and node.name not in names:
            names.add(node.name)
            waiting += [makers[name] for name in node.input if name in makers]
    return sorted(names)


def _reader(quantization: Any, source: Path, features: Iterable[Tensor]) -> Any:
    """An onnxruntime reader of calibration data, with one utterance per batch."""
    import onnxruntime

    inputs = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()
    names = [value.name for value in inputs]
    bands = next(size for size in inputs[0].shape if isinstance(size, int))

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(features)

        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            utterance = next(self.batches, None)
            if utterance is None:
                return None
            return dict(zip(names, (utterance.numpy()[None], np.array([utterance.numel() // bands]))))

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's warnings on the root logger, which do not apply to these graphs."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
