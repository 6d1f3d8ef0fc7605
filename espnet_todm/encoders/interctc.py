"""Intermediate CTC on outputs between blocks (Lee and Watanabe, arXiv 2102.03216), with optional self-conditioning on the
posteriors (Nozaki and Komatsu, arXiv 2104.02724).

A place is the number of supernet blocks before an intermediate output, as in ESPnet's ``interctc_layer_idx``. All subnets
use the same places: the intermediate output is that of the last kept block before the place. A subnet has a place only if
it keeps a block between the previous place and this one, and a block after it; otherwise the output would not be new.
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
    """An intermediate output (B, T, D), its place, and its weight in [0, 1], which is below 1 only with soft gates."""

    place: int
    output: Tensor
    weight: Weight = 1.0


class Between:
    """Collects the intermediate outputs of one pass. ``posteriors``: output (B, T, D) -> (B, T, V), for conditioning."""

    def __init__(self, posteriors: Optional[Callable[[Tensor], Tensor]] = None) -> None:
        self.posteriors = posteriors
        self.taken: list[Taken] = []

    def fed_back(self, output: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """The term that self-conditioning adds to the next block's input. Raises UserError without ``posteriors``."""
        if self.posteriors is None:
            raise UserError(f"{CONDITIONING}: true needs the model's CTC output, but this pass has none")
        return layer(self.posteriors(output))


def parse_places(given: Any, blocks: int) -> tuple[int, ...]:
    """Parse the option ``interctc_layer_idx``, sorted. Raises UserError for a place that is not between blocks."""
    places = given or ()
    whole = isinstance(places, (list, tuple)) and all(isinstance(n, int) and not isinstance(n, bool) for n in places)
    if not whole or any(not 0 < place < blocks for place in places):
        raise UserError(
            f"{LAYERS}: {places!r} must be a list of whole numbers from 1 to {blocks - 1}: blocks before it"
        )
    return tuple(sorted(set(places)))


def kept_places(places: Sequence[int], layers: Collection[int]) -> list[int]:
    """The places of a subnet that keeps these layers."""
    starts = (0, *places)
    return [
        place
        for start, place in zip(starts, places)
        if any(start <= layer < place for layer in layers) and any(layer >= place for layer in layers)
    ]


def renumbered(place: int, layers: Collection[int]) -> int:
    """The number of a place in the small model that has only these layers."""
    return sum(layer < place for layer in layers)


def soft_places(places: Sequence[int], gates: Mapping[tuple[int, str], Tensor]) -> dict[int, Tensor]:
    """Place -> weight in [0, 1]. With gates of 0 and 1, the places of weight 1 are those of :func:`kept_places`."""

    def some(first: int, end: float) -> Tensor:
        return any_open(torch.cat([values for (layer, _), values in gates.items() if first <= layer < end]))

    return {place: some(start, place) * some(place, float("inf")) for start, place in zip((0, *places), places)}
