"""Training with the rounding errors of int8 (quantisation-aware, arXiv 1712.05877), so that weights get used to them."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FAKE_QUANTIZATION = "fake_quantization"  # option of a training
WEIGHT_STEPS, ACTIVATION_STEPS = 127, 255


class FakeInt8(TorchFunctionMode):
    """In this context every linear layer computes with weights and inputs that were rounded to int8 and back.

    The numbers are those of onnxruntime's plain dynamic quantisation, so that an export to int8 computes what was trained:
    weights from -127 to 127 with one scale for each layer, inputs from 0 to 255 with a scale and a zero point for each run.
    Gradients pass through the rounding unchanged (straight-through, arXiv 1308.3432).
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = _rounded_linear if function is F.linear else function
        return called(*args, **(kwargs or {}))


KINDS = {"int8": FakeInt8}


def _rounded_linear(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    return F.linear(rounded_inputs(input), rounded_weight(weight), bias)


def rounded_weight(weight: Tensor) -> Tensor:
    """weight (N, K) on a symmetric grid."""
    with torch.no_grad():
        scale = _positive(weight.abs().amax() / WEIGHT_STEPS)
        error = (weight / scale).round() * scale - weight
    return weight + error


def rounded_inputs(inputs: Tensor) -> Tensor:
    """Inputs on grids with a zero: one for each utterance of (B, T, K), as an encoder runs, and one for each row of another
    shape (..., K), as a joiner runs in a search."""
    with torch.no_grad():
        over = (1, 2) if inputs.dim() == 3 else (-1,)
        low, high = inputs.amin(over, keepdim=True).clamp(max=0), inputs.amax(over, keepdim=True).clamp(min=0)
        scale = _positive((high - low) / ACTIVATION_STEPS)
        zero = (-low / scale).round()
        steps = ((inputs / scale).round() + zero).clamp(0, ACTIVATION_STEPS)
        error = (steps - zero) * scale - inputs
    return inputs + error


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
