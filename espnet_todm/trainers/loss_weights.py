"""The weights of the losses of a step's subnets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from espnet_todm.components import FULL, Subnet
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_by_name, check_length, check_number

FOCAL = "focal"


class LossWeights:
    """Weights of the losses of the subnets that a step trains. Their sum is 1 in every step.

    Args:
        sizes: the names that ``size_weights`` may have.
        size_weights: name -> weight of the loss of a size relative to the others, default 1.
        moving_weight: [low, high]. The losses of all subnets below the full size together have the weight
            clip(step / steps of the run, low, high), the full size has the rest (SKD, arXiv 2406.07909). None: no such
            limit.

    Raises UserError for a name that is no size and for values outside their ranges.
    """

    def __init__(
        self,
        sizes: Iterable[str],
        size_weights: Optional[Mapping[str, float]],
        moving_weight: Optional[Sequence[float]],
    ) -> None:
        self.by_name = check_by_name("size_weights", size_weights or {}, sizes, "size", above=0)
        self.moving = None if moving_weight is None else _check_range(moving_weight)
        if self.moving and FULL in self.by_name:
            raise UserError(
                f"size_weights.{FULL}: moving_weight sets the weight of the full size; leave one of them out"
            )

    def of(self, subnets: Sequence[Subnet], step: int, planned: Optional[int]) -> list[float]:
        """The weight of each subnet of training step ``step`` of ``planned``, the full size first. Raises UserError if the
        weight is a moving one and the length of the run is unknown."""
        weights = [self.by_name.get(subnet.name, 1.0) for subnet in subnets]
        if self.moving is None or len(subnets) == 1:
            return [weight / sum(weights) for weight in weights]
        low, high = self.moving
        below = min(max(step / check_length("moving_weight", planned, "leave it out"), low), high)
        return [1 - below, *(below * weight / sum(weights[1:]) for weight in weights[1:])]


def weighted(loss: Tensor, weight: Union[str, float], detached: bool) -> Tensor:
    """A loss per frame times its weight: a number, or "focal" for 1 - exp(-loss), which reduces small losses. No gradient
    passes through a detached weight."""
    if weight != FOCAL:
        return float(weight) * loss
    focal = 1 - torch.exp(-loss)
    return (focal.detach() if detached else focal) * loss


def _check_range(pair: Any) -> tuple[float, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise UserError(f"moving_weight: {pair!r} must be [low, high], for example [0.3, 0.7]")
    low, high = pair
    check_number("moving_weight", low, at_least=0, below=1)
    check_number("moving_weight", high, at_least=low, above=0, below=1)
    return low, high
