"""Uniform scaling as a selection: depth and widths shrink alike, as a size given as a plain share does."""

from __future__ import annotations

from espnet_todm.selection.base import Selection
from espnet_todm.sizes import uniform_order


class Uniform(Selection):
    """The order that :func:`espnet_todm.sizes.fit_budget` walks. There is nothing to learn, hence no first stage."""

    learns = False

    def order(self, step: int) -> list[int]:
        """Units in the order in which their first components come."""
        unit_of = {key: unit for unit, keys in enumerate(self.units.keys) for key in keys}
        return list(dict.fromkeys(unit_of[key] for key in uniform_order(self.units.table)))
