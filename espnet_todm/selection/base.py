"""Base class of selections. A selection gives soft weights of units while it learns, and then an order of the units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Optional, Union

import torch
from torch import Tensor, nn

from espnet_todm.selection.units import Units


class Selection(nn.Module):
    """Learns which units each size keeps. Its parameters and buffers hold all of its state, so every checkpoint has it.

    ``learns``: false if the order is known from the start, so that no first stage is needed. ``subnet_weight``: the
    trainer's default for this option.

    Args:
        units: the N units to choose from.
        shares: size -> share of the full cost, smallest first.
        steps: length of the first stage, for schedules.
        seed: seed of the selection's random numbers, if it uses any.
    """

    learns: ClassVar[bool] = True
    subnet_weight: ClassVar[Union[str, float]] = "focal"

    def __init__(self, units: Units, shares: Mapping[str, float], steps: int, seed: int = 0) -> None:
        super().__init__()
        self.units, self.shares, self.steps, self.seed = units, dict(shares), steps, seed

    def last_for(self, steps: int) -> None:
        """Set the length of the first stage. If it is a share of the training, it is known only when training begins."""
        self.steps = steps

    def weights(self, size: str, step: int) -> Tensor:
        """Soft weights (N,) in [0, 1] of the units for one size at a step of the first stage, with autograd graph."""
        return torch.ones(len(self.units))

    @abstractmethod
    def order(self, step: int) -> list[int]:
        """Indices of all units, most important first, as learned so far. All ranks get the same order."""

    def penalty(self, size: str, step: int) -> Optional[Tensor]:
        """Weighted penalty, a scalar, that a step of the first stage adds to the loss. None means no penalty."""
        return None

    def before_step(self, step: int) -> None:
        """Called before each step of the first stage, outside autograd."""
