"""The parts of an encoder that are timed separately, as modules with inputs. PyTorch calls these modules; ONNX graphs are
exported from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor, nn

from espnet_todm.components import Key, Subnet
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.supernet import SupernetEncoder

COUNTS = 5  # maximum number of counts of kept components at which a module is timed


@dataclass(frozen=True)
class Probe:
    """Identifies a timed part: "front" (before the first block), "finalise" (after the last block), "norm" (the norm at the
    end of a block), "block" (a block with one module), or "whole" (an extracted subnet)."""

    part: str
    subnet: Optional[Subnet] = None


class Part(NamedTuple):
    """A module, its inputs, and for each input the dimensions whose size depends on the utterance."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    varying: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shape:
    """Modules with the same name and shape: the ``layers`` that have one, and its number of ``components``."""

    module: str
    layers: tuple[int, ...]
    components: int

    def kept(self, count: int) -> Subnet:
        """The subnet of the first ``count`` components of the first of these modules."""
        return Subnet("probe", frozenset(Key(self.layers[0], self.module, index) for index in range(count)))

    def counts(self) -> list[int]:
        """Numbers of kept components at which to time it, evenly spaced from one to all."""
        return sorted({round(n) for n in np.linspace(1, self.components, min(COUNTS, self.components))})


def distinct_shapes(encoder: SupernetEncoder) -> list[Shape]:
    """All distinct shapes of modules, in the order of their first layers."""
    layers: dict[tuple[Any, ...], list[int]] = {}
    for layer, block in enumerate(encoder.encoders):
        for name, _, module in block.elastic_modules():  # type: ignore[operator]
            shape = tuple(tuple(parameter.shape) for parameter in module.parameters())
            layers.setdefault((name, module.components, shape), []).append(layer)
    return [Shape(name, tuple(found), components) for (name, components, _), found in layers.items()]


def parts(
    encoder: SupernetEncoder,
    features: Tensor,
    subnets: Sequence[Subnet],
    convert: Callable[[SupernetEncoder], SupernetEncoder] = lambda encoder: encoder,
) -> dict[Probe, Part]:
    """All timed parts for features (1, T, F), including the whole ``subnets``. ``convert`` turns an encoder into the form in
    which it runs. Blocks are extracted, since the weights of a slice may not be contiguous in memory."""
    lengths = torch.tensor([features.size(1)])
    itself = convert(encoder)
    hidden, *between = _front(itself, features, lengths)
    seen, block_varies = (hidden, *between), ((0, 1), *[(1,)] * (len(between) - 1), (0, 2))
    whole, whole_varies = (features, lengths), ((0, 1), (0,))
    found = {
        Probe("front"): Part(_Call(_front, itself), whole, whole_varies),
        Probe("finalise"): Part(_Call(_output_norm, itself), (hidden,), ((0, 1),)),
    }
    norm = _final_norm(encoder)
    if norm is not None:
        found[Probe("norm")] = Part(norm, (hidden,), ((0, 1),))
    for shape in distinct_shapes(encoder):
        for count in shape.counts():
            (block,) = convert(encoder.extract(shape.kept(count))).encoders
            found[Probe("block", shape.kept(count))] = Part(_Call(_block, block), seen, block_varies)
    for subnet in subnets:
        found[Probe("whole", subnet)] = Part(_Call(_whole, convert(encoder.extract(subnet))), whole, whole_varies)
    return found


def torch_calls(timed: Mapping[Probe, Part]) -> dict[Probe, Callable[[], object]]:
    """The parts as calls of PyTorch."""
    return {probe: lambda part=part: part.module(*part.inputs) for probe, part in timed.items()}  # type: ignore[misc]


def _final_norm(encoder: SupernetEncoder) -> Optional[nn.Module]:
    """The norm at the end of a block, or None. It has the same dimension in all blocks."""
    norms = (getattr(block, "norm_final", None) for block in encoder.encoders)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


class _Call(nn.Module):
    """Wraps a function of (encoder or block, tensors) as a module whose inputs are only the tensors."""

    def __init__(self, run: Callable[..., Any], module: nn.Module) -> None:
        super().__init__()
        self.run, self.module = run, module

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.module, *inputs)


def _front(encoder: SupernetEncoder, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """Features (B, T, F), lengths (B,) -> hidden (B, T', D), positions (1, 2T'-1, D) if there are any, mask (B, 1, T')."""
    subsampled = encoder.subsample(features, lengths)
    between = () if subsampled.positions is None else (subsampled.positions,)
    return (subsampled.hidden, *between, subsampled.mask)


def _block(block: nn.Module, hidden: Tensor, *between: Tensor) -> Any:
    """Outputs of :func:`_front` -> (B, T', D)."""
    return block(hidden, between[0] if len(between) == 2 else None, between[-1], LayerChoice())


def _output_norm(encoder: SupernetEncoder, hidden: Tensor) -> Tensor:
    return encoder.output_norm(hidden)


def _whole(encoder: SupernetEncoder, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, T, F), lengths (B,) -> (B, T', D), lengths (B,)."""
    subsampled = encoder.subsample(features, lengths)
    return encoder.blocks(subsampled), subsampled.lengths
