"""Simple-Top-k: one score per unit, and a relaxed top k whose k falls to that of the smallest size (arXiv 2407.18930)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units
from espnet_todm.util.checks import check_number

_WHOLE = 1e-6  # a weight this close to 1 counts as 1
_TAKEN = -1e4  # added to the score of a unit that is already taken


class TopK(Selection):
    """Softly keeps the k units with the highest scores: k softmaxes in sequence, each masking the units already taken.

    Args:
        decrements: number of equal steps in which k falls from all units to those of the smallest size.
        score_start: initial value of all scores.
        temperature: temperature of the softmaxes.
    """

    subnet_weight = 0.3  # as in arXiv 2407.18930

    def __init__(
        self,
        units: Units,
        shares: Mapping[str, float],
        steps: int,
        seed: int = 0,
        decrements: int = 12,
        score_start: float = 0.5,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(units, shares, steps, seed)
        check_number("decrements", decrements, at_least=1, whole=True)
        check_number("temperature", temperature, above=0)
        check_number("score_start", score_start)
        self.decrements, self.temperature = decrements, temperature
        self.scores = nn.Parameter(torch.full((len(units),), float(score_start)))

    def k(self, step: int) -> int:
        """Number of units kept at a step: all at first, in the last part as many as the smallest size keeps."""
        done = min(step * (self.decrements + 1) // max(self.steps, 1), self.decrements)
        smallest = self.units.nested(self.order(step), {"": min(self.shares.values())})[""]
        kept = sum(keys[0] in smallest.components for keys in self.units.keys)
        return round(len(self.units) - (len(self.units) - kept) * done / self.decrements)

    def weights(self, size: str, step: int) -> Tensor:
        return relaxed_top_k(self.scores / self.temperature, self.k(step))

    @torch.no_grad()
    def order(self, step: int) -> list[int]:
        return [int(unit) for unit in torch.sort(self.scores.cpu(), descending=True, stable=True).indices]


def relaxed_top_k(scores: Tensor, k: int) -> Tensor:
    """scores (N,) -> weights (N,) in [0, 1]. Their sum is k, or less if a weight is clipped at 1."""
    masked, total = scores, torch.zeros_like(scores)
    for _ in range(k):
        taken = torch.softmax(masked, dim=0)
        total = total + taken
        # The logarithm of 1 - taken is infinite where 1 - taken rounds to 0, hence the clamp.
        rest = torch.log1p(-taken.clamp(max=1 - _WHOLE))
        masked = masked + torch.where(taken < 1 - _WHOLE, rest, _TAKEN)
    return total.clamp(max=1.0)
