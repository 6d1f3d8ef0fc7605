"""Quantisation of ONNX graphs: int8 weights and activations with onnxruntime's quantizer, or float16."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from torch import Tensor

from espnet_todm.deploy.onnx.state_space import FILTERS
from espnet_todm.errors import UserError

DYNAMIC, STATIC = "dynamic", "static"
METHODS = (DYNAMIC, STATIC)
DYNAMIC_OPERATORS = ("MatMul", "Gemm")
STATIC_OPERATORS = ("MatMul", "Gemm", "Conv")
CALIBRATION_UTTERANCES = 50


def to_int8(
    source: Path,
    target: Path,
    calibration: Optional[Iterable[Tensor]] = None,
    operators: Optional[Sequence[str]] = None,
) -> None:
    """Quantize a float32 graph to int8.

    Without ``calibration``, each run determines the ranges of activations (dynamic). With ``calibration``, they are fixed to
    the ranges on these features, one utterance (T, F) each (static).
    """
    from onnxruntime import quantization

    with _quiet():
        if calibration is None:
            quantization.quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=list(operators or DYNAMIC_OPERATORS),
                weight_type=quantization.QuantType.QInt8,
            )
            return
        reader = _reader(quantization, source, calibration)
        prepared = target.with_suffix(".prepared")
        quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            reader,
            op_types_to_quantize=list(operators or STATIC_OPERATORS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        prepared.unlink()


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


def check_method(method: str, calibration: Optional[Any]) -> None:
    """Raises UserError for an unknown method, or for static without calibration data."""
    if method not in METHODS:
        raise UserError(f"int8: {method!r} is unknown; allowed: {', '.join(METHODS)}")
    if method == STATIC and calibration is None:
        raise UserError("int8: static needs speech to measure activations on; give --calibrate feats.scp")


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
