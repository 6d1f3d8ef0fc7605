"""One training step over several subnets in sequence, with the memory of one model.

The shared part (features, and subsampling unless each subnet sees a view of its own) runs once. Each subnet then runs
forward and backward separately, so the activations of only one subnet are in memory. The shared part runs backward once,
with the sum of the gradients. All of this happens inside the model's forward. The returned loss is an autograd node whose
backward gives each parameter its finished gradient. A caller of ``loss.backward()`` therefore sees an ordinary model: one
gradient per parameter and step, through the usual hooks. Loss scaling, gradient accumulation, clipping and
DistributedDataParallel work unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Protocol, TypeVar

import torch
from torch import Tensor

from espnet_todm.precision import at_least_float32


class Shared(Protocol):
    """The output of the shared part: :class:`SubsampledFeatures`, or the features if each subnet subsamples its own view."""

    @property
    def hidden(self) -> Tensor: ...

    def with_hidden(self: S, hidden: Tensor) -> S: ...


S = TypeVar("S", bound=Shared)
Gradients = list[Optional[Tensor]]
Observer = Callable[[int, Sequence[Optional[Tensor]]], None]
_BY_TENSOR = "Tensor" in torch.ops.aten._foreach_mul.overloads()  # from torch 2.1 on
_CHUNK = 60
"""Tensors in one foreach operation. It bounds the memory of results whose operands are not free yet."""
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
        parameters: all parameters that may receive a gradient. A parameter that no pass uses gets None. With
            ``find_unused_parameters``, DistributedDataParallel leaves a parameter that no rank uses without gradient, too;
            without, it makes zeros of None.
        loss_scale: factor on the losses before the inner backward, divided out afterwards. float16 needs it.
        observe: called after each pass with its number and its gradients at (shared.hidden, *parameters), before they
            are summed; None where the pass has none. They are those of the scaled loss.
    """
    leaf = shared.hidden.detach().requires_grad_()
    total = torch.zeros((), device=leaf.device)
    wanted = [leaf, *parameters]
    sums = Sums(len(wanted))
    for number, part in enumerate(passes):
        loss = at_least_float32(part(shared.with_hidden(leaf)))
        total = total + loss.detach()
        of_pass = _grad(loss * loss_scale, wanted)
        del loss  # free its graph before the next subnet builds its own
        if observe is not None:
            observe(number, tuple(of_pass))
        sums.add(of_pass)
        del of_pass
    at_front, front = sums.take(0), shared.hidden
    if front.requires_grad and at_front is not None:
        sums.add([None, *_grad(front, parameters, at_front.to(front.dtype))])
    gradients, ours = sums.values[1:], sums.ours[1:]
    delivered: Tensor = _Deliver.apply(total, gradients, ours, loss_scale, *parameters)
    return delivered


def _grad(output: Tensor, inputs: Sequence[Tensor], at_output: Optional[Tensor] = None) -> Gradients:
    # autograd.grad returns gradients; backward would change .grad and call the hooks of DistributedDataParallel.
    with torch.autocast(output.device.type, enabled=False):
        return list(torch.autograd.grad(output, inputs, at_output, allow_unused=True))


class Sums:
    """Sums of the gradients of several passes; an input that no pass has reached has None.

    The first gradient of an input is not changed: autograd may return one tensor for two inputs (a + b), or an expanded view
    without own memory (sums). A sum of two or more is a tensor of ours (``ours``), to which later ones are added in place.
    """

    def __init__(self, inputs: int) -> None:
        self.values: Gradients = [None] * inputs
        self.ours = [False] * inputs

    def add(self, gradients: Gradients) -> None:
        """Add the gradients of a pass, which are removed from the list one after the other to free their memory."""
        both = [index for index, gradient in enumerate(gradients) if gradient is not None]
        for index in both:
            if self.values[index] is None:
                self.values[index], gradients[index] = gradients[index], None
        for kept in (True, False):
            some = [index for index in both if gradients[index] is not None and self.ours[index] is kept]
            for indices in _chunks(some, [self.values, gradients]):
                totals, new = _some(self.values, indices), _some(gradients, indices)
                if kept:
                    torch._foreach_add_(totals, new)
                else:
                    totals = list(torch._foreach_add(totals, new))
                for index, total in zip(indices, totals):
                    self.values[index], self.ours[index], gradients[index] = total, True, None

    def take(self, index: int) -> Optional[Tensor]:
        """Remove a sum and return it."""
        value, self.values[index] = self.values[index], None
        return value


def _chunks(indices: Sequence[int], lists: Sequence[Sequence[Optional[Tensor]]]) -> Iterator[list[int]]:
    """The indices in chunks whose tensors in ``lists`` CUDA's foreach kernels handle in one launch. They must be dense and
    of one dtype; other indices are chunks of their own."""
    alike: dict[torch.dtype, list[int]] = {}
    for index in indices:
        tensors = [values[index] for values in lists]
        first = tensors[0]
        assert first is not None
        if all(tensor is not None and tensor.is_contiguous() and tensor.dtype == first.dtype for tensor in tensors):
            alike.setdefault(first.dtype, []).append(index)
        else:
            yield [index]
    for same in alike.values():
        for start in range(0, len(same), _CHUNK):
            yield same[start : start + _CHUNK]


def _some(gradients: Gradients, indices: Sequence[int]) -> list[Tensor]:
    """Gradients at indices where there are some."""
    return [gradient for gradient in (gradients[index] for index in indices) if gradient is not None]


class _Deliver(torch.autograd.Function):
    """Identity on the loss. Its backward gives the i-th parameter the i-th gradient times the incoming gradient. Gradients
    that are ``ours`` are multiplied in place."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: Gradients, ours: Sequence[bool], loss_scale: float, *parameters: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.ours, ctx.loss_scale = gradients, ours, loss_scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, at_loss: Tensor) -> tuple[Optional[Tensor], ...]:
        gradients: Gradients = ctx.gradients
        ctx.gradients = None
        _multiply(gradients, ctx.ours, at_loss / ctx.loss_scale)
        return (None, None, None, None, *gradients)


def _multiply(gradients: Gradients, ours: Sequence[bool], factor: Tensor) -> None:
    """Multiply the gradients of the list by a scalar, in place where they are ``ours``."""
    for kept in (True, False):
        some = [index for index, gradient in enumerate(gradients) if gradient is not None and ours[index] is kept]
        for indices in _chunks(some, [gradients]):
            old = _some(gradients, indices)
            if kept and _BY_TENSOR:
                torch._foreach_mul_(old, factor)
                continue
            new = torch._foreach_mul(old, factor) if _BY_TENSOR else [gradient * factor for gradient in old]
            for index, product in zip(indices, new):
                gradients[index] = product
            del old
