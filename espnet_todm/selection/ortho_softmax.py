"""OrthoSoftmax: orthogonal softmaxes select the components of all sizes without a search (arXiv 2501.18895).

Row k of P = softmax(S / tau) is a soft choice of one unit. A size is the prefix of rows whose expected cost meets its
budget, so the sizes are nested. While tau falls, a penalty makes the rows of the prefix orthonormal, that is one-hot and
distinct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.precision import at_least_float32
from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.host import fact

NORMS = ("l2_sqrt", "l2", "l1")
SCHEDULES = ("constant", "linear", "learned")
_START = 0.01  # standard deviation of the initial scores; with equal scores, rounding would determine the order


class OrthoSoftmax(Selection):
    """Score matrix S (N, N): rows are choices, columns are units.

    Args:
        seed: seed of the initial scores.
        temperature_start, temperature_decay, temperature_floor: tau = max(start * decay^step, floor). Without a decay, tau
            reaches ``temperature_end`` at the end of the first stage.
        temperature_end: see above. The paper's decay ends at about 0.06 (LibriSpeech) or 0.17 (TED-LIUM 2).
        penalty: norm of the distance of G = P_K P_K^T from the identity: "l2_sqrt", sqrt(sum_{i<j} G_ij^2 +
            sum_i (G_ii - 1)^2), "l2", the same without the root, or "l1", the sum of absolute values.
        penalty_weight: factor of the penalty.
        penalty_schedule: schedule of the factor: "constant", "linear" (from 0 to ``penalty_weight`` in ``penalty_steps``,
            by default the first stage), or "learned": a multiplier that grows until the rows are orthonormal.
    """

    def __init__(
        self,
        units: Units,
        shares: Mapping[str, float],
        steps: int,
        seed: int = 0,
        temperature_start: float = 1.0,
        temperature_decay: Optional[float] = None,
        temperature_floor: float = 0.01,
        temperature_end: float = 0.1,
        penalty: str = "l2_sqrt",
        penalty_weight: float = 1.0,
        penalty_schedule: str = "linear",
        penalty_steps: Optional[int] = None,
    ) -> None:
        super().__init__(units, shares, steps, seed)
        check_choice("penalty", penalty, NORMS)
        check_choice("penalty_schedule", penalty_schedule, SCHEDULES)
        for name, value in (("temperature_start", temperature_start), ("temperature_floor", temperature_floor)):
            check_number(name, value, above=0)
        check_number("temperature_end", temperature_end, above=0)
        check_number("penalty_weight", penalty_weight, at_least=0)
        if temperature_decay is not None:
            check_number("temperature_decay", temperature_decay, above=0, at_most=1)
        if penalty_steps is not None:
            check_number("penalty_steps", penalty_steps, at_least=1, whole=True)
        self.start, self.end, self.decay, self.floor = (
            temperature_start,
            temperature_end,
            temperature_decay,
            temperature_floor,
        )
        self.norm, self.weight, self.schedule = penalty, penalty_weight, penalty_schedule
        self.penalty_steps = penalty_steps
        generator = torch.Generator().manual_seed(seed)
        # The mean is 1, which does not change a softmax. ScaledAdam's steps are relative to a tensor's root mean square,
        # so small scores around 0 would hardly move.
        self.scores = nn.Parameter(1 + _START * torch.randn(len(units), len(units), generator=generator))
        if penalty_schedule == "learned":
            self.multiplier = nn.Parameter(torch.zeros(()))

    def temperature(self, step: int) -> float:
        # Not computed in __init__: if the first stage is a share of the training, its length is not known there.
        decay = self.decay or (self.end / self.start) ** (1 / max(self.steps, 1))
        return max(self.start * decay**step, self.floor)

    def probabilities(self, step: int) -> Tensor:
        """P (N, N) in float32 or float64. Row k is the distribution of choice k over the units."""
        return torch.softmax(at_least_float32(self.scores) / self.temperature(step), dim=1)

    def prefix(self, size: str, probabilities: Tensor) -> int:
        """Number of rows whose expected cost is nearest to the size's budget, at least 1."""
        costs = self.units.costs_on(probabilities.device)
        expected = self.units.rest + (probabilities.detach().double() @ costs).cumsum(0)
        return int((expected - self.shares[size] * self.units.total).abs().argmin()) + 1

    def _kept(self, size: str, step: int, probabilities: Tensor) -> int:
        """:meth:`prefix`, read from the device once for scores that do not change."""
        return fact(self.scores, (size, self.temperature(step)), lambda: self.prefix(size, probabilities))

    def weights(self, size: str, step: int) -> Tensor:
        chosen = self.probabilities(step)
        # Rows that still overlap can sum to more than 1 for a unit, which no slice can represent.
        return chosen[: self._kept(size, step, chosen)].sum(0).clamp(max=1.0)

    def penalty(self, size: str, step: int) -> Tensor:
        chosen = self.probabilities(step)
        distance = orthogonality(chosen[: self._kept(size, step, chosen)], self.norm)
        if self.schedule == "learned":
            factor = F.softplus(self.multiplier)  # gradient descent in the rows, ascent (by the sign) in the multiplier
            return self.weight * (factor.detach() * distance - factor * distance.detach())
        ramp = min(1.0, step / (self.penalty_steps or max(self.steps, 1))) if self.schedule == "linear" else 1.0
        return self.weight * ramp * distance

    @torch.no_grad()
    def order(self, step: int) -> list[int]:
        """Assign distinct units to the rows of the largest size, so that the sum of probabilities is largest.

        A separate argmax of each row could choose a unit twice, which leaves a size below its budget. Units without a row
        follow, ordered by their total probability in these rows.
        """
        chosen = self.probabilities(step).cpu().double()
        rows = chosen[: self.prefix(max(self.shares, key=lambda name: self.shares[name]), chosen)]
        assigned = [int(unit) for unit in linear_sum_assignment(rows.numpy(), maximize=True)[1]]
        left = sorted(set(range(len(self.units))) - set(assigned), key=lambda unit: (-float(rows[:, unit].sum()), unit))
        return assigned + left


def orthogonality(rows: Tensor, norm: str) -> Tensor:
    """Distance of rows (K, N) from an orthonormal set: a scalar, 0 if all rows are one-hot and distinct."""
    gram = rows @ rows.T
    diagonal = gram.diagonal() - 1
    above = gram[tuple(torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device))]
    if norm == "l1":
        return above.abs().sum() + diagonal.abs().sum()
    squares = above.square().sum() + diagonal.square().sum()
    # The root has an infinite derivative at 0. An exactly orthonormal set would give NaN gradients.
    return squares if norm == "l2" else (squares + 1e-12).sqrt()
