"""One training step over several subnets in sequence, with the memory of one model.

The shared part (features, and subsampling unless each subnet sees a view of its own) runs once. Each subnet then runs
forward and backward separately, so the activations of only one subnet are in memory. The shared part runs backward once,
with the sum of the gradients. All of this happens inside the model's forward. The returned loss is an autograd node whose
backward gives each parameter its finished gradient. A caller of ``loss.backward()`` therefore sees an ordinary model: one
gradient per parameter and step, through the usual hooks. Loss scaling, gradient accumulation, clipping and
DistributedDataParallel work unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional, Protocol, TypeVar

import torch
from torch import Tensor


class Shared(Protocol):
    """The output of the shared part: :class:`SubsampledFeatures`, or the features if each subnet subsamples its own view."""

    @property
    def hidden(self) -> Tensor: ...

    def with_hidden(self: S, hidden: Tensor) -> S: ...


S = TypeVar("S", bound=Shared)
Gradients = list[Optional[Tensor]]
Observer = Callable[[int, Sequence[Optional[Tensor]]], None]
Pass = Callable[[S], Tensor]  # one subnet's part of a step: output of the shared part -> weighted scalar loss


def sequential_step(
    shared: S,
    passes: Sequence[Pass[S]],
    parameters: Sequence[Tensor],
    loss_scale: float = 1.0,
    observe: Optional[Observer] = None,
) -> Tensor:
    """Return the sum of the losses of all passes, as a scalar whose backward delivers the gradients.

    Args:
        shared: output of the shared part, with its autograd graph, if it has one.
        passes: they run in this order. A later pass may use results of an earlier one (the teacher's posteriors).
        parameters: all parameters that may receive a gradient. A parameter that no pass uses gets None, or zeros under
            DistributedDataParallel, which waits for every parameter.
        loss_scale: factor on the losses before the inner backward, divided out afterwards. float16 needs it.
        observe: called after each pass with its number and its gradients at (shared.hidden, *parameters), before they
            are summed; None where the pass has none. They are those of the scaled loss.
    """
    leaf = shared.hidden.detach().requires_grad_()
    total = torch.zeros((), device=leaf.device)
    wanted = [leaf, *parameters]
    sums: Gradients = [None] * len(wanted)
    for number, part in enumerate(passes):
        loss = part(shared.with_hidden(leaf)).float()
        total += loss.detach()
        of_pass = _grad(loss * loss_scale, wanted)
        del loss  # free its graph before the next subnet builds its own
        if observe is not None:
            observe(number, of_pass)
        _add(sums, of_pass)
        del of_pass
    at_front, gradients = sums[0], sums[1:]
    if shared.hidden.requires_grad and at_front is not None:
        _add(gradients, _grad(shared.hidden, parameters, at_front.to(shared.hidden.dtype)))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
    delivered: Tensor = _Deliver.apply(total, gradients, loss_scale, *parameters)
    return delivered


def _grad(output: Tensor, inputs: Sequence[Tensor], at_output: Optional[Tensor] = None) -> Sequence[Optional[Tensor]]:
    # autograd.grad returns gradients; backward would change .grad and call the hooks of DistributedDataParallel.
    with torch.autocast(output.device.type, enabled=False):
        return torch.autograd.grad(output, inputs, at_output, allow_unused=True)


def _add(sums: Gradients, gradients: Sequence[Optional[Tensor]]) -> None:
    # Not in place: autograd may return one tensor for two inputs (a + b), or an expanded view without own memory (sums).
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            total = sums[index]
            sums[index] = gradient if total is None else total + gradient


class _Deliver(torch.autograd.Function):
    """Identity on the loss. Its backward gives the i-th parameter the i-th gradient times the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Gradients, loss_scale: float, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.loss_scale = gradients, loss_scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, at_loss: Tensor) -> tuple[Optional[Tensor], ...]:
        factor = at_loss / ctx.loss_scale
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(None if gradient is None else gradient * factor for gradient in gradients))
