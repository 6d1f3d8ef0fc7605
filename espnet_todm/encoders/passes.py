"""One pass of an encoder's blocks: its input, and what runs in each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Optional, TypeVar

from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.elastic.own import OwnOfSizes
from espnet_todm.encoders.depth import WHOLE, Depth

Gates = Mapping[tuple[int, str], Tensor]  # (layer, module) -> weights (components,)
Drop = Mapping[tuple[int, str], float]  # (layer, module) -> probability of dropping the module
T = TypeVar("T")


@dataclass(frozen=True)
class SubsampledFeatures:
    """The subsampled input, which all subnets of a step share."""

    hidden: Tensor  # (B, T, D)
    positions: Optional[Tensor]  # relative positions (1, 2T-1, D), legacy ones (1, T, D); else None
    lengths: Tensor  # (B,) int64, frames after subsampling
    mask: Tensor  # (B, 1, T) bool, true at valid frames
    visible: Optional[Tensor] = None  # (B, T, T) bool, chunk mask of attention; None: all valid frames
    depth: Depth = WHOLE  # layers that this step skips
    dropout: bool = True  # false turns it off behind the subsampling in a training pass

    def with_hidden(self, hidden: Tensor) -> SubsampledFeatures:
        return replace(self, hidden=hidden)


def choices(
    subnet: Subnet,
    own: OwnOfSizes,
    layers: int,
    gates: Optional[Gates] = None,
    drop: Optional[Drop] = None,
    depth: Depth = WHOLE,
    dropout: bool = True,
) -> list[Optional[LayerChoice]]:
    """What each of the ``layers`` blocks runs for a subnet, or with gates; None for a block that the pass skips.

    own: what the sizes own. drop: stochastic depth of modules.
    """
    found: list[Optional[LayerChoice]] = []
    for layer in range(layers):
        dropped, scale = _of_layer(layer, drop or {}), depth.scales.get(layer, 1.0)
        block = own.block(subnet.name, layer)
        if layer in depth.without:
            found.append(None)
        elif gates is not None:
            found.append(LayerChoice(None, _of_layer(layer, gates), dropped, "", scale, block, dropout))
        else:
            kept = subnet.layers.get(layer, {})
            found.append(LayerChoice(kept, None, dropped, subnet.name, scale, block, dropout))
    return found


def _of_layer(layer: int, values: Mapping[tuple[int, str], T]) -> dict[str, T]:
    """Values of one layer's modules, by module."""
    return {module: value for (la, module), value in values.items() if la == layer}
