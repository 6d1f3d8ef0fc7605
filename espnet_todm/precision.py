"""Where mixed precision stops: what needs the digits of float32 is computed in it. float64 stays as it is."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the floating-point tensors is in it."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """A floating-point tensor in its :func:`compute_dtype`; complex numbers likewise."""
    return x.to(compute_dtype(x))
