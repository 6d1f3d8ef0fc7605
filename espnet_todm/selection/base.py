"""What a learned selection is: it weighs units softly while it learns, and orders them by worth when it has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Optional, Union

import torch
from torch import Tensor, nn

from espnet_todm.selection.units import Units


class Selection(nn.Module):
    """Learns which units each size keeps. All it learned is in its parameters and buffers, hence in every checkpoint.

    ``learns``: false where the order is known from the start, so that no first stage is needed. ``subnet_weight``: the
    trainer's default of this option.

    Args:
        units: what there is to choose.
        shares: size -> share of the full cost, smallest first.
        steps: length of the first stage, for schedules.
        seed: of what is random in it, if anything is.
    """

    learns: ClassVar[bool] = True
    subnet_weight: ClassVar[Union[str, float]] = "focal"

    def __init__(self, units: Units, shares: Mapping[str, float], steps: int, seed: int = 0) -> None:
        super().__init__()
        self.units, self.shares, self.steps, self.seed = units, dict(shares), steps, seed

    def last_for(self, steps: int) -> None:
        """The first stage has so many steps. A stage that is a share of the training has its length when that begins."""
        self.steps = steps

    def weights(self, size: str, step: int) -> Tensor:
        """Soft weights (N,) in [0, 1] of the units for one size at a step of the first stage, with their graph."""
        return torch.ones(len(self.units))

    @abstractmethod
    def order(self, step: int) -> list[int]:
        """All units, the most valuable first, as learned so far. The same on every rank."""

    def penalty(self, size: str, step: int) -> Optional[Tensor]:
        """What is added to the loss of a step in the first stage, weighted already; None: nothing."""
        return None

    def before_step(self, step: int) -> None:
        """Called before each step of the first stage, outside autograd."""
