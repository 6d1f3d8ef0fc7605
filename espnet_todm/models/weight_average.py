"""Averaged weights: validation, the files of epochs and so every extracted model use them; training goes on without them.

An average over the last updates is a better model than any of them, as long as the learning rate is high (polynomial-decay
averaging, arXiv 1212.1824; icefall averages the weights between two checkpoints).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "weight_average."  # of its state in a checkpoint, after the name of the model's attribute
_NOT_AVERAGED = "subnet_trainer."  # prefix of those tensors of a model that no extracted model has


class WeightAverage(nn.Module):
    """The average of a model's parameters and floating-point buffers over the last ``share`` of its updates.

    Update n (1-based) moves the average by min(1, 1 / (share * n)) of the way to the present weights. Of the updates before
    (1 - share) * n, all weights together have a weight of (1 - share)^(1 / share), about a third. The averages are neither
    parameters nor buffers, so the optimizer and DistributedDataParallel do not see them, and ranks do not exchange them: all
    compute the same.

    Args:
        share: in (0, 1].
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.updates = share, 0
        self.averages: dict[str, Tensor] = {}

    def restart(self) -> None:
        """Forget the average, since the components of the model were sorted. The next update begins a new one."""
        self.averages, self.updates = {}, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average with the present weights of ``model``. Call before each training step."""
        present = dict(averaged_tensors(model))
        if not self.updates:
            self.averages = {name: tensor.detach().clone() for name, tensor in present.items()}
        self.updates += 1
        by = min(1.0, 1 / (self.share * self.updates))
        averages, now = list(self.averages.values()), [present[name] for name in self.averages]
        torch._foreach_add_(averages, torch._foreach_sub(now, averages), alpha=by)  # equal numbers stay exactly equal

    @contextmanager
    @torch.no_grad()
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """In this context the model has the averaged weights, if there was an update; afterwards its own, bit by bit."""
        present = dict(averaged_tensors(model))
        own = {name: present[name].clone() for name in self.averages}
        for name in own:
            present[name].copy_(self.averages[name])
        try:
            yield
        finally:
            for name, tensor in own.items():
                present[name].copy_(tensor)

    def _apply(self, fn: Any, *arguments: Any) -> WeightAverage:
        self.averages = {name: fn(tensor) for name, tensor in self.averages.items()}
        super()._apply(fn, *arguments)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.updates:
            destination.update({prefix + name: tensor for name, tensor in self.averages.items()})
            destination[prefix + "updates"] = torch.tensor(self.updates)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        """The files of epochs have no average: one begins from their weights."""
        found = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        self.updates = int(found.pop("updates", torch.tensor(0)))
        self.averages = {name: tensor.detach().clone() for name, tensor in found.items()}


def averaged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a model that are averaged: all of floating-point numbers but those of the subnet trainer."""
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if tensor.is_floating_point() and not name.startswith(_NOT_AVERAGED):
                yield name, tensor


def published(states: Any) -> Any:
    """A model's state with the averaged weights in the place of the others. What has no such weights is returned as is."""
    if not isinstance(states, dict):
        return states
    averages = {name[len(PREFIX) :]: tensor for name, tensor in states.items() if str(name).startswith(PREFIX)}
    if not averages:
        return states
    kept = copy.copy(states)  # with the versions of torch's modules, which are an attribute
    for name in states:
        if name.startswith(PREFIX):
            del kept[name]
        elif name in averages:
            kept[name] = averages[name]
    return kept
