"""Copies of small tensors on the host, made once.

Reading values of a tensor on a GPU waits for all that the GPU still has to do. The lengths and labels of a batch are needed
on the host in many places of a training step, so a copy is kept for as long as the tensor lives unchanged. All of this
costs nothing for tensors that are on the host.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Callable, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_COPY = "copy"
# id of a tensor -> the tensor, its version, and what is known about its values. As keys, tensors would be compared by value.
_KNOWN: dict[int, tuple[weakref.ref[Tensor], int, dict[Hashable, Any]]] = {}


def copy_on_host(tensor: Tensor) -> Tensor:
    """The tensor itself if it is on the host, else its copy there. Not to be changed."""
    return tensor if _is_there(tensor) else fact(tensor, _COPY, tensor.cpu)


def values(tensor: Tensor) -> Any:
    """``tensor.tolist()``."""
    return copy_on_host(tensor).tolist()


def read(*tensors: Tensor) -> None:
    """Copy integer tensors of one device to the host, all at once."""
    if _is_there(tensors[0]):
        return
    flat = torch.cat([tensor.reshape(-1).long() for tensor in tensors]).cpu()
    for tensor, copy in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        _remember(tensor, copy.view(tensor.shape))


def on_both(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``. If the tensors have copies on the host, the result gets one, too, without being read."""
    result = function(*tensors)
    if not _is_there(result):
        copies = [tensor if _is_there(tensor) else _facts(tensor).get(_COPY) for tensor in tensors]
        if all(copy is not None for copy in copies):
            _remember(result, function(*copies))
    return result


def fact(tensor: Tensor, name: Hashable, of: Callable[[], T]) -> T:
    """The result of ``of()``, something about the values of a tensor. It is computed once while the tensor lives
    unchanged."""
    facts = _facts(tensor)
    if name not in facts:
        facts[name] = of()
    found: T = facts[name]
    return found


def places(mask: Tensor, count: int) -> Tensor:
    """Indices (count,) int64 of the true entries of a mask (N,), ascending. ``count``: their number, so that the device is
    not waited for."""
    if _is_there(mask):
        return mask.nonzero().view(-1)
    order = torch.cumsum(mask, 0) - 1
    order = torch.where(mask, order, count)  # all false entries share one more place, which is cut off
    found = torch.empty(count + 1, dtype=torch.int64, device=mask.device)
    return found.scatter_(0, order, torch.arange(len(mask), device=mask.device))[:count]


def _is_there(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _remember(tensor: Tensor, copy: Tensor) -> None:
    _facts(tensor)[_COPY] = copy


def _facts(tensor: Tensor) -> dict[Hashable, Any]:
    """What is known about a tensor."""
    if tensor.is_inference():  # these do not count their changes
        return {}
    key = id(tensor)
    known = _KNOWN.get(key)
    if known is None or known[0]() is not tensor or known[1] != tensor._version:
        known = _KNOWN[key] = (weakref.ref(tensor, lambda reference: _forget(key, reference)), tensor._version, {})
    return known[2]


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    if key in _KNOWN and _KNOWN[key][0] is reference:  # another tensor may have the id by now
        del _KNOWN[key]
