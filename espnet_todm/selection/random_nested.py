"""Random nested sizes: the baseline for learned selections."""

from __future__ import annotations

import random
from collections.abc import Mapping

from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units


class RandomNested(Selection):
    """One random order of the units for all sizes. It learns nothing, so there is no first stage."""

    learns = False

    def __init__(self, units: Units, shares: Mapping[str, float], steps: int, seed: int = 0) -> None:
        super().__init__(units, shares, steps, seed)
        self._order = list(range(len(units)))
        random.Random(f"random nested {seed}").shuffle(self._order)

    def order(self, step: int) -> list[int]:
        return list(self._order)
