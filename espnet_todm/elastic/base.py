"""Base of all elastic modules: how parameters are cut into components.

A module declares once which of its tensors are cut and along which dimension. Running a slice, costing it and writing
it as a small module all use this declaration, so they are consistent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet_todm.components import FULL

_FEW = 128
"""So many elements, or fewer, are multiplied in a square table: a few launches, and still little arithmetic."""

KeepIndices = Optional[tuple[int, ...]]  # component indices, ascending; None keeps all


class Context(NamedTuple):
    """Further inputs of the modules of a block.

    positions: (1, 2T-1, D) or None. mask: (B, 1, T), true at valid frames. size: the name of the running subnet, which
    selects its batch norm statistics. visible: (B, T, T), the frames that attention sees; None for all valid frames.
    own_norm: has the weight and bias that the running size owns of the norm inside the module; None: the shared ones.
    dropout: false turns dropout off in a training pass.
    """

    positions: Optional[Tensor]
    mask: Tensor
    size: str = FULL
    visible: Optional[Tensor] = None
    own_norm: Optional[nn.Module] = None
    dropout: bool = True


class Cut(NamedTuple):
    """Dimension ``dim`` of a tensor has ``copies`` consecutive runs of all components (2 for a GLU)."""

    dim: int
    copies: int = 1


class ElasticModule(nn.Module):
    """A module of ``components`` equal parts that runs full, sliced (``kept``) or gated (``gates``).

    Every subclass's ``forward(x, ..., kept, gates)`` takes at most one of

    - ``kept``: the keep indices; nothing else is computed,
    - ``gates`` (components,): float weights in [0, 1]; 0/1 gates equal the slice.

    Tensors that are not in ``cuts`` (output biases) belong to the whole module: they are used if any component is kept.

    Class attributes of a subclass: ``last``, the name of its last linear layer, and ``norm_name``, that of its norm, if any.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {}
    last: ClassVar[str] = ""
    norm_name: ClassVar[str] = ""

    def __init__(self, components: int) -> None:
        super().__init__()
        self.components = components
        self._indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        """``forward`` with the inputs it needs from ``context``; blocks call this for every module. x (B, T, D) ->
        (B, T, D).
        """
        del context  # unused unless a subclass overrides this
        result: Tensor = self(x, kept=kept, gates=gates)
        return result

    def flops(self, frames: int) -> float:
        """FLOPs (2 x multiply-accumulates) of the full module on one utterance of ``frames`` frames."""
        raise NotImplementedError

    def params_per_component(self) -> int:
        """Parameters of one component."""
        return sum(p.numel() for n, p in self.named_parameters() if n in self.cuts) // self.components

    def params_shared(self) -> int:
        """Parameters that count once if the module keeps any component."""
        return sum(p.numel() for n, p in self.named_parameters() if n not in self.cuts)

    def take(self, name: str, kept: KeepIndices) -> Tensor:
        """The part of the tensor ``name`` that belongs to the kept components: a view if they are adjacent."""
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(self.get_submodule(owner), leaf)
        return self.cut_named(name, tensor, kept)

    def cut_named(self, name: str, tensor: Tensor, kept: KeepIndices) -> Tensor:
        """The kept components of a tensor with the layout of the tensor ``name``."""
        return self.cut(tensor, self.cuts[name], kept) if name in self.cuts else tensor

    def affine(self, kept: KeepIndices, own_norm: Optional[nn.Module] = None) -> tuple[Tensor, Tensor]:
        """Weight and bias (C,) of the module's norm for the kept components; those of ``own_norm`` if it is given."""
        names = [f"{self.norm_name}.{part}" for part in ("weight", "bias")]
        if own_norm is None:
            return self.take(names[0], kept), self.take(names[1], kept)
        own = own_norm.get_parameter("weight"), own_norm.get_parameter("bias")
        return self.cut_named(names[0], own[0], kept), self.cut_named(names[1], own[1], kept)

    def cut(self, tensor: Tensor, cut: Cut, kept: KeepIndices) -> Tensor:
        """The kept components of a tensor with the layout ``cut``."""
        if kept is None:
            return tensor
        dim, copies = cut
        parts = tensor.unflatten(dim, (copies, self.components, -1))
        if kept[-1] - kept[0] + 1 == len(kept):
            parts = parts.narrow(dim + 1, kept[0], len(kept))
        else:
            parts = parts.index_select(dim + 1, self._index(kept, tensor.device))
        return parts.flatten(dim, dim + 2)

    def sliced_state(self, kept: tuple[int, ...], size: str = FULL) -> dict[str, Tensor]:
        """The state dict of the small module that keeps only these components, with the statistics of the subnet
        ``size``.
        """
        return {name: self.take(name, kept).detach().clone() for name in self.state_dict()}

    @torch.no_grad()
    def reorder(self, order: tuple[int, ...], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Component ``order[i]`` becomes the i-th. The output of the module does not change.

        ``states`` is the optimizer's state of each parameter. State tensors of a parameter's shape are reordered alike,
        and so are gradients that are still being accumulated.
        """
        for name, cut in self.reordered().items():
            owner, _, leaf = name.rpartition(".")
            self.reorder_tensor(getattr(self.get_submodule(owner), leaf), cut, order, states)

    def reorder_tensor(
        self, tensor: Tensor, cut: Cut, order: tuple[int, ...], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> None:
        """Reorder the components of one tensor with the layout ``cut``, and of what belongs to it."""
        beside = [value for value in (*states.get(tensor, {}).values(), tensor.grad) if isinstance(value, Tensor)]
        for target in (tensor, *(value for value in beside if value.shape == tensor.shape)):
            parts = target.unflatten(cut.dim, (cut.copies, self.components, -1))
            moved = parts.index_select(cut.dim + 1, self._index(order, target.device))
            target.copy_(moved.flatten(cut.dim, cut.dim + 2))

    def reordered(self) -> dict[str, Cut]:
        """Name -> layout of the tensors that are laid out by components, as far as this module has them."""
        return {name: self.cuts[name] for name in self.state_dict() if name in self.cuts}

    def _index(self, kept: tuple[int, ...], device: torch.device) -> Tensor:
        if (kept, device) not in self._indices:
            self._indices[kept, device] = torch.tensor(kept, device=device)
        return self._indices[kept, device]


def share_of(kept: KeepIndices, components: int) -> float:
    """The share of kept components, in (0, 1]."""
    return 1.0 if kept is None else len(kept) / components


def adapted(rate: float, units: int, whole: Optional[int]) -> float:
    """The dropout rate of a module of ``units`` units if ``rate`` is for ``whole`` units; never above ``rate``."""
    return rate * min(1.0, units / (whole or units))


def any_open(gates: Tensor) -> Tensor:
    """A smooth "or" of gates (components,): 1 - prod(1 - g). With 0/1 gates: 1 if the module keeps any component, else
    0.
    """
    opened: Tensor = _AnyOpen.apply(gates)
    return opened


class _AnyOpen(torch.autograd.Function):
    """:func:`any_open` with a backward of its own: that of torch's product looks for zeros, for which it waits for the
    device.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor) -> Tensor:
        closed = 1 - gates
        ctx.save_for_backward(closed)
        return 1 - closed.prod()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """gradient () -> (components,): times the product of 1 - g of all other gates."""
        (x,) = ctx.saved_tensors
        if len(x) <= _FEW:
            return gradient * x.repeat(len(x), 1).fill_diagonal_(1.0).prod(1)
        one = x.new_ones(1)  # the product of those before, and of those after
        before = torch.cat([one, x[:-1]]).cumprod(0)
        after = torch.cat([one, x.flip(0)[:-1]]).cumprod(0).flip(0)
        return gradient * before * after


def spread(gates: Tensor, units: int) -> Tensor:
    """Gates (components,) repeated to one weight per unit (units,)."""
    return gates.repeat_interleave(units // gates.numel())


def last_linear(x: Tensor, weight: Tensor, bias: Tensor, gates: Optional[Tensor]) -> Tensor:
    """x (..., C), weight (D, C), bias (D,) -> (..., D). Gates scale the units of their components, and :func:`any_open`
    the bias.

    The gates are applied to the weights, which are much smaller than the batch, so the backward needs no more memory.
    """
    if gates is None:
        return F.linear(x, weight, bias)
    return F.linear(x, weight * spread(gates, weight.size(-1)), bias * any_open(gates))
