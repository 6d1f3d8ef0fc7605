"""The parameters that a size owns in a block: weight and bias of each norm, and a scale on each residual branch.

Both are folded when the size is extracted: into the norms, and into the last linear layer of each branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn

from espnet_todm.elastic.base import ElasticModule

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
        self.norms = nn.ModuleDict({_key(name): own_norm(norm) for name, norm in norms_of(block) if affine})
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
        for name, norm in norms_of(block):
            own = self.norm(name)
            if own is not None:
                yield norm, own

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
                yield f"{key.replace('/', '.')}.{part}", value


def norms_of(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the norms with weight and bias in a block."""
    kinds = (nn.LayerNorm, nn.BatchNorm1d)
    return [(name, norm) for name, norm in block.named_modules() if isinstance(norm, kinds) and norm.weight is not None]


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
