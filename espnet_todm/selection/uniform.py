"""Uniform scaling as a selection: depth and widths shrink together, as for a size given as a plain share."""

from __future__ import annotations

from espnet_todm.selection.base import Selection
from espnet_todm.sizes import uniform_order


class Uniform(Selection):
    """The order of :func:`espnet_todm.sizes.fit_budget`. It learns nothing, so there is no first stage."""

    learns = False

    def order(self, step: int) -> list[int]:
        """Units in the order of their first components."""
        unit_of = {key: unit for unit, keys in enumerate(self.units.keys) for key in keys}
        return list(dict.fromkeys(unit_of[key] for key in uniform_order(self.units.table)))
