"""Intermediate CTC: outputs taken between blocks (Lee and Watanabe, arXiv 2102.03216) and, with self-conditioning, fed back
as posteriors (Nozaki and Komatsu, arXiv 2104.02724).

A place is how many blocks of the supernet lie before it, as ESPnet's ``interctc_layer_idx`` counts. It stays there in every
subnet: what is taken is the output of the last kept block before it. A subnet without a block between a place and the one
before it, or without a block after it, does not have that place: there is nothing new to take, or the end is as near.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

import torch
from torch import Tensor

from espnet_todm.elastic.base import any_open
from espnet_todm.errors import UserError

LAYERS, CONDITIONING = "interctc_layer_idx", "interctc_use_conditioning"
Weight = Union[float, Tensor]


class Taken(NamedTuple):
    """An output between blocks: its place, (B, T, D), and in a pass through soft gates how much of it there is."""

    place: int
    output: Tensor
    weight: Weight = 1.0


class Between:
    """What one pass takes between blocks, and how it makes posteriors (B, T, V) of such an output to feed them back."""

    def __init__(self, posteriors: Optional[Callable[[Tensor], Tensor]] = None) -> None:
        self.posteriors = posteriors
        self.taken: list[Taken] = []

    def fed_back(self, output: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """What is added to the blocks' input. Raises UserError where there are no posteriors."""
        if self.posteriors is None:
            raise UserError(f"{CONDITIONING}: true needs the model's CTC output, but this pass has none")
        return layer(self.posteriors(output))


def parse_places(given: Any, blocks: int) -> tuple[int, ...]:
    """The option ``interctc_layer_idx``, ascending. Raises UserError for a place that is not between blocks."""
    places = given or ()
    whole = isinstance(places, (list, tuple)) and all(isinstance(n, int) and not isinstance(n, bool) for n in places)
    if not whole or any(not 0 < place < blocks for place in places):
        raise UserError(
            f"{LAYERS}: {places!r} must be a list of whole numbers from 1 to {blocks - 1}: blocks before it"
        )
    return tuple(sorted(set(places)))


def kept_places(places: Sequence[int], layers: Collection[int]) -> list[int]:
    """Those places that a subnet with these layers has."""
    starts = (0, *places)
    return [
        place
        for start, place in zip(starts, places)
        if any(start <= layer < place for layer in layers) and any(layer >= place for layer in layers)
    ]


def renumbered(place: int, layers: Collection[int]) -> int:
    """The place in the small model that has only these layers."""
    return sum(layer < place for layer in layers)


def soft_places(places: Sequence[int], gates: Mapping[tuple[int, str], Tensor]) -> dict[int, Tensor]:
    """How much there is of each place; with gates of 0 and 1 what :func:`kept_places` says."""

    def some(first: int, end: float) -> Tensor:
        return any_open(torch.cat([values for (layer, _), values in gates.items() if first <= layer < end]))

    return {place: some(start, place) * some(place, float("inf")) for start, place in zip((0, *places), places)}
