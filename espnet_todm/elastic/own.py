"""The parameters that each named size owns in an encoder: weight and bias of each norm, and a scale on each residual branch.

Both are folded when the size is extracted: into the norms, and into the last linear layer of each branch. All other subnets,
the full one included, use the shared parameters and no scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from espnet_todm.components import FULL
from espnet_todm.elastic.base import ElasticModule
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number

AFTER_NORM = "after_norm"
Kept = Mapping[str, tuple[int, ...]]  # module -> keep indices


class OwnBlock(nn.Module):
    """A size's own parameters in one block. They have the width of the supernet; the size uses its kept components.

    Args:
        block: the block, whose norms give the own ones their shapes and first values.
        modules: the elastic modules of the block, by name.
        affine: whether the size owns weight and bias of each norm.
        scale: first value of the scale of each branch; None: no scales.
    """

    def __init__(
        self, block: nn.Module, modules: Mapping[str, ElasticModule], affine: bool, scale: Optional[float]
    ) -> None:
        super().__init__()
        self.branches, self.first_scale = tuple(modules), scale
        norms = norms_of(block, modules) if affine else {}
        self.norms = nn.ModuleDict({_key(name): own_norm(norm) for name, norm in norms.items()})
        self.scales = None if scale is None else nn.Parameter(torch.full((len(self.branches),), float(scale)))

    def norm(self, name: str) -> Optional[nn.Module]:
        """The own norm in place of the block's norm ``name``, such as "norm_ff" or "conv_module.norm"; None: the shared
        one.
        """
        return self.norms[_key(name)] if _key(name) in self.norms else None

    def scaled(self, branch: str, output: Tensor) -> Tensor:
        """The output of the module ``branch`` (B, T, D), times its scale."""
        return output if self.scales is None else output * self.scales[self.branches.index(branch)]

    def pairs(self, block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs of a shared norm and the own one."""
        for key, own in self.norms.items():
            yield block.get_submodule(_name(key)), own

    @torch.no_grad()
    def reset_scales(self) -> None:
        if self.scales is not None and self.first_scale is not None:
            self.scales.fill_(self.first_scale)

    def folded(self, state: dict[str, Tensor], modules: Mapping[str, ElasticModule], kept: Kept) -> dict[str, Tensor]:
        """The state dict of the small block with these parameters in place of the shared ones.

        ``state``: that of the small block with the shared ones. ``kept``: keep indices of its modules.
        """
        folded = dict(state)
        for name, value in self._affine_state():
            if name in state:
                owner, _, inside = name.partition(".")
                own = value if owner not in modules else modules[owner].cut_named(inside, value, kept[owner])
                folded[name] = own.detach().clone()
        if self.scales is not None:
            for branch, scale in zip(self.branches, self.scales.detach()):
                for name in (f"{branch}.{modules[branch].last}.{part}" for part in ("weight", "bias")):
                    if name in state:
                        folded[name] = state[name] * scale.to(state[name])
        return folded

    @torch.no_grad()
    def reorder(self, name: str, module: ElasticModule, order: tuple[int, ...], states: Mapping[Tensor, Any]) -> None:
        """Reorder the components of the norm inside the module ``name``, see :meth:`ElasticModule.reorder`."""
        own = self.norm(f"{name}.{module.norm_name}")
        if own is not None:
            for part, parameter in own.named_parameters():
                module.reorder_tensor(parameter, module.cuts[f"{module.norm_name}.{part}"], order, states)

    def _affine_state(self) -> Iterator[tuple[str, Tensor]]:
        for key, norm in self.norms.items():
            for part, value in norm.named_parameters():
                yield f"{_name(key)}.{part}", value


class OwnParameters(nn.Module):
    """The own parameters of one size: an :class:`OwnBlock` for each block, and the output norm.

    Args:
        blocks: the blocks of the supernet.
        after_norm: its output norm, or None.
        affine, scale: as in :class:`OwnBlock`.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], after_norm: Optional[nn.Module], affine: bool, scale: Optional[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OwnBlock(block, _modules(block), affine, scale) for block in blocks)
        self.after_norm = own_norm(after_norm) if affine and after_norm is not None else None

    def pairs(
        self, blocks: Iterable[nn.Module], after_norm: Optional[nn.Module]
    ) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs of a shared norm and the own one."""
        for own, block in zip(self.blocks, blocks):
            yield from cast(OwnBlock, own).pairs(block)
        if self.after_norm is not None and after_norm is not None:
            yield after_norm, self.after_norm


class OwnOfSizes(nn.ModuleDict):
    """Size -> :class:`OwnParameters`; empty if sizes own nothing."""

    def block(self, size: str, layer: int) -> Optional[OwnBlock]:
        """What a size owns in a block."""
        return cast(OwnBlock, self._of(size).blocks[layer]) if size in self else None

    def after_norm(self, size: str) -> Optional[nn.Module]:
        """The output norm that a size owns."""
        return self._of(size).after_norm if size in self else None

    def pairs(
        self, size: str, blocks: Iterable[nn.Module], after_norm: Optional[nn.Module]
    ) -> list[tuple[nn.Module, nn.Module]]:
        """:meth:`OwnParameters.pairs` of a size."""
        return list(self._of(size).pairs(blocks, after_norm)) if size in self else []

    def reset_scales(self, size: str) -> None:
        """Set the branch scales of a size, if it has any, to their first value."""
        for block in self._of(size).blocks if size in self else ():
            cast(OwnBlock, block).reset_scales()

    def fold(self, size: str, layer: int, block: nn.Module, state: dict[str, Tensor], kept: Kept) -> dict[str, Tensor]:
        """State dict of a small block with what the size owns, see :meth:`OwnBlock.folded`."""
        own = self.block(size, layer)
        return state if own is None else own.folded(state, _modules(block), kept)

    def outer_state(self, size: str) -> dict[str, Tensor]:
        """What the size owns of an extracted encoder's state dict outside of its blocks."""
        norm = self.after_norm(size)
        state = norm.state_dict() if norm is not None else {}
        return {f"{AFTER_NORM}.{name}": value.detach().clone() for name, value in state.items()}

    def reorder(
        self, layer: int, name: str, module: ElasticModule, order: tuple[int, ...], states: Mapping[Tensor, Any]
    ) -> None:
        """Reorder the components of what all sizes own in a module, see :meth:`ElasticModule.reorder`."""
        for size in self:
            cast(OwnBlock, self.block(size, layer)).reorder(name, module, order, states)

    def _of(self, size: str) -> OwnParameters:
        return cast(OwnParameters, self[size])


def make_own(encoder: Any, options: Any, sizes: Iterable[str]) -> OwnOfSizes:
    """What the sizes of an encoder own by its options. Raises UserError for a wrong scale, and without sizes."""
    affine, scale = bool(options.own_affine), options.own_branch_scale
    if not affine and scale is None:
        return OwnOfSizes()
    if scale is not None:
        check_number("own_branch_scale", scale, above=0)
        _check_last(encoder.encoders)
    names = [name for name in sizes if name != FULL]
    if not names:
        key = "own_affine: True" if affine else f"own_branch_scale: {scale!r}"
        raise UserError(f"{key} is for named sizes, but encoder_conf has none; give it sizes or leave it out")
    after_norm = getattr(encoder, AFTER_NORM, None)
    return OwnOfSizes({name: OwnParameters(encoder.encoders, after_norm, affine, scale) for name in names})


def norms_of(block: nn.Module, modules: Mapping[str, ElasticModule]) -> dict[str, nn.Module]:
    """Norms with weight and bias by name: those of the block, and one inside each module that has one."""
    inside = {f"{name}.{module.norm_name}" for name, module in modules.items()}
    kinds = (nn.LayerNorm, nn.BatchNorm1d)
    named = ((name, norm) for name, norm in block.named_modules() if isinstance(norm, kinds))
    return {name: norm for name, norm in named if "." not in name or name in inside}


def own_norm(norm: nn.Module) -> nn.LayerNorm:
    """A LayerNorm with the channels, weight and bias of a norm."""
    weight = norm.get_parameter("weight")
    own = nn.LayerNorm(len(weight), eps=float(norm.eps))  # type: ignore[arg-type]
    start_as(norm, own)
    return own


@torch.no_grad()
def start_as(shared: nn.Module, own: nn.Module) -> None:
    """Set all parameters of ``own`` to those of ``shared`` with the same names."""
    for name, parameter in own.named_parameters():
        parameter.copy_(shared.get_parameter(name))


def _key(name: str) -> str:
    """Key of a norm's name: those of submodules have no dots."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")


def _check_last(blocks: Iterable[nn.Module]) -> None:
    """Raises UserError for a module without a known last linear layer, into which a scale could be folded."""
    for module in (module for block in blocks for module in _modules(block).values()):
        if not module.last:
            raise UserError(f"own_branch_scale: {type(module).__name__} does not name its last linear layer (last)")


def _modules(block: nn.Module) -> dict[str, Any]:
    return {name: module for name, _, module in block.elastic_modules()}  # type: ignore[operator]
