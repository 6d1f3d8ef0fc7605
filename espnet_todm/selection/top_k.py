"""Simple-Top-k: one score per unit, and a relaxed top k whose k falls until the smallest size is left (arXiv 2407.18930)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units
from espnet_todm.util.checks import check_number

_WHOLE = 1e-6  # a weight this close to one is a whole unit
_TAKEN = -1e4  # added to the score of a unit that is taken


class TopK(Selection):
    """Keeps the k units of the highest scores, softly: k softmaxes in turn, each masking what the ones before it took.

    Args:
        decrements: k falls from all units to those of the smallest size in so many equal parts of the first stage.
        score_start: of every score, so that no unit is preferred at first.
        temperature: of the softmaxes.
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
        """Units kept at a step: all at first, in the last part as many as the smallest size has room for."""
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
    """scores (N,) -> weights (N,) in [0, 1] that add up to k, or less where a unit would be taken more than whole."""
    masked, total = scores, torch.zeros_like(scores)
    for _ in range(k):
        taken = torch.softmax(masked, dim=0)
        total = total + taken
        # Where 1 - taken would round to nothing, its logarithm would be no number to go on with.
        rest = torch.log1p(-taken.clamp(max=1 - _WHOLE))
        masked = masked + torch.where(taken < 1 - _WHOLE, rest, _TAKEN)
    return total.clamp(max=1.0)
