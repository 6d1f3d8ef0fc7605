"""OrthoSoftmax: several orthogonal softmaxes pick the components of all sizes, with no search (arXiv 2501.18895).

Row k of P = softmax(S / tau) is a soft choice of one unit. A size is the prefix of rows whose expected cost meets its
budget, so sizes are nested by construction. A penalty drives the rows of the prefix to be orthonormal, that is one-hot and
different, while tau falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units
from espnet_todm.util.checks import check_choice, check_number

NORMS = ("l2_sqrt", "l2", "l1")
SCHEDULES = ("constant", "linear", "learned")
_START = 0.01  # standard deviation of the first scores: breaks the tie that a constant start leaves to rounding


class OrthoSoftmax(Selection):
    """Score matrix S (N, N): rows are choices, columns are units.

    Args:
        seed: of the first scores.
        temperature_start, temperature_decay, temperature_floor: tau = max(start * decay^step, floor). Without a decay, tau
            falls so that it reaches ``temperature_end`` at the end of the first stage.
        temperature_end: see above; the paper's decay comes to about 0.06 (LibriSpeech) or 0.17 (TED-LIUM 2).
        penalty: norm of the distance of G = P_K P_K^T from the identity: "l2_sqrt", sqrt(sum_{i<j} G_ij^2 +
            sum_i (G_ii - 1)^2), "l2", the same without the root, or "l1", the sum of absolute values.
        penalty_weight: factor of the penalty.
        penalty_schedule: of the factor: "constant", "linear" (from 0 to the full one in ``penalty_steps``, by default the
            first stage), or "learned": a multiplier that grows as long as the rows are not orthonormal.
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
        # Around one, which a softmax does not see: ScaledAdam's steps are relative to a tensor's root mean square, and
        # around zero scores this small would hardly move.
        self.scores = nn.Parameter(1 + _START * torch.randn(len(units), len(units), generator=generator))
        if penalty_schedule == "learned":
            self.multiplier = nn.Parameter(torch.zeros(()))

    def temperature(self, step: int) -> float:
        # Not reckoned beforehand: a stage that is a share of the run has its length only when the run begins.
        decay = self.decay or (self.end / self.start) ** (1 / max(self.steps, 1))
        return max(self.start * decay**step, self.floor)

    def probabilities(self, step: int) -> Tensor:
        """P (N, N): row k is the k-th choice's distribution over units."""
        return torch.softmax(self.scores.float() / self.temperature(step), dim=1)

    def prefix(self, size: str, probabilities: Tensor) -> int:
        """Number of rows whose expected cost comes nearest to the size's budget; at least one."""
        costs = self.units.costs.to(probabilities.device)
        expected = self.units.rest + (probabilities.detach().double() @ costs).cumsum(0)
        return int((expected - self.shares[size] * self.units.total).abs().argmin()) + 1

    def weights(self, size: str, step: int) -> Tensor:
        chosen = self.probabilities(step)
        # Rows that still overlap can add up to more than one whole unit, which no slice could be.
        return chosen[: self.prefix(size, chosen)].sum(0).clamp(max=1.0)

    def penalty(self, size: str, step: int) -> Tensor:
        chosen = self.probabilities(step)
        distance = orthogonality(chosen[: self.prefix(size, chosen)], self.norm)
        if self.schedule == "learned":
            factor = F.softplus(self.multiplier)  # descends in the rows and, by the sign, ascends in the multiplier
            return self.weight * (factor.detach() * distance - factor * distance.detach())
        ramp = min(1.0, step / (self.penalty_steps or max(self.steps, 1))) if self.schedule == "linear" else 1.0
        return self.weight * ramp * distance

    @torch.no_grad()
    def order(self, step: int) -> list[int]:
        """Rows of the largest size get different units, so that the probabilities assigned add up to the most.

        An argmax of each row by itself could take a unit twice and leave a size under its budget. Units that no row of
        the largest size was given follow, by the probability that those rows gave them.
        """
        chosen = self.probabilities(step).cpu().double()
        rows = chosen[: self.prefix(max(self.shares, key=lambda name: self.shares[name]), chosen)]
        assigned = [int(unit) for unit in linear_sum_assignment(rows.numpy(), maximize=True)[1]]
        left = sorted(set(range(len(self.units))) - set(assigned), key=lambda unit: (-float(rows[:, unit].sum()), unit))
        return assigned + left


def orthogonality(rows: Tensor, norm: str) -> Tensor:
    """Distance of rows (K, N) from an orthonormal set: a scalar, 0 when each row is one-hot and no two are alike."""
    gram = rows @ rows.T
    diagonal = gram.diagonal() - 1
    above = gram[tuple(torch.triu_indices(len(rows), len(rows), offset=1))]
    if norm == "l1":
        return above.abs().sum() + diagonal.abs().sum()
    squares = above.square().sum() + diagonal.square().sum()
    # The root has no slope at 0, where an exactly orthonormal set would turn gradients into NaN.
    return squares if norm == "l2" else (squares + 1e-12).sqrt()
