"""Parameters that each named size owns in a supernet encoder: ``own_affine`` and ``own_branch_scale``.

All other subnets, the full one included, use the shared parameters and no scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, cast

from torch import Tensor, nn

from espnet_todm.components import FULL
from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ElasticBlock
from espnet_todm.elastic.own import Kept, OwnBlock, own_norm
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number

AFTER_NORM = "after_norm"


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
    names = [name for name in sizes if name != FULL]
    if not names:
        key = "own_affine: True" if affine else f"own_branch_scale: {scale!r}"
        raise UserError(f"{key} is for named sizes, but encoder_conf has none; give it sizes or leave it out")
    after_norm = getattr(encoder, AFTER_NORM, None)
    return OwnOfSizes({name: OwnParameters(encoder.encoders, after_norm, affine, scale) for name in names})


def _modules(block: nn.Module) -> dict[str, Any]:
    return {name: module for name, _, module in cast(ElasticBlock, block).elastic_modules()}
