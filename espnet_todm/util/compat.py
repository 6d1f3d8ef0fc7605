"""What differs between the versions of ESPnet and torch that this package runs on, beside the names of the registries.

The older end is ESPnet 202402 with torch 1.13, the newer one ESPnet 202511 with torch 2.11. Imports nothing of ours.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


def is_classifier(model: Any) -> bool:
    """Whether an ESPnet ASR model has a linear decoder, for one class an utterance. ESPnet 202402 knows no such decoder."""
    return bool(getattr(model, "use_linear_decoder", False))


@cache
def autocasts_on_cpu(dtype: torch.dtype) -> bool:
    """Whether torch can run a model's norms under autocast to ``dtype`` on a CPU.

    torch 1.13 cannot: its LayerNorm refuses float32 weights with an input of another type.
    """
    try:
        torch.nn.functional.layer_norm(torch.zeros(1, 2, dtype=dtype), (2,), torch.ones(2), torch.zeros(2))
    except RuntimeError:
        return False
    return True


@cache
def runs_lstm_on_cpu(dtype: torch.dtype) -> bool:
    """Whether torch can train an LSTM under autocast to ``dtype`` on this CPU.

    oneDNN, which autocast gives LSTMs to, refuses bfloat16 on x86 CPUs without AVX-512.
    """
    try:
        with torch.autocast("cpu", dtype=dtype):
            output, _ = torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))
        output.float().sum().backward()
    except RuntimeError:
        return False
    return True


def is_captured() -> bool:
    """Whether this code runs to be written down, by torch.compile or by torch.jit.trace (as for an ONNX file)."""
    compiler = getattr(torch, "compiler", None)  # torch 2.1 and later
    return torch.jit.is_tracing() or (compiler is not None and bool(compiler.is_compiling()))


def computes_in_bfloat16_on_cpu(x: torch.Tensor) -> bool:
    """Whether matrix products of ``x`` are in bfloat16 on a CPU, because it is or because autocast makes them so."""
    if x.device.type != "cpu":
        return False
    try:
        casting, to = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    except (AttributeError, TypeError):  # torch below 2.4
        casting, to = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    return (to if casting else x.dtype) == torch.bfloat16
