"""Iterative-Zero-Out: sigmoid gates; each iteration closes the lowest ones (arXiv 2407.18930)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espnet_todm.selection.base import Selection
from espnet_todm.selection.units import Units
from espnet_todm.util.checks import check_number


class ZeroOut(Selection):
    """Gates sigmoid(g). After each part of the first stage, the lowest open gates are set to ``closed``.

    Args:
        iterations: number of times that gates are closed, evenly over the first stage. The last leaves the smallest size.
        opened, closed: initial g of all gates, and g of a closed gate.
        sparsity_weight: factor of |sparsity - target|, both as shares of the full cost. Iterations increase the target.
    """

    subnet_weight = 0.3  # as in arXiv 2407.18930
    closed_at: Tensor

    def __init__(
        self,
        units: Units,
        shares: Mapping[str, float],
        steps: int,
        seed: int = 0,
        iterations: int = 8,
        opened: float = 10.0,
        closed: float = -5.0,
        sparsity_weight: float = 5.0,
    ) -> None:
        super().__init__(units, shares, steps, seed)
        check_number("iterations", iterations, at_least=1, whole=True)
        check_number("sparsity_weight", sparsity_weight, at_least=0)
        check_number("opened", opened)
        check_number("closed", closed, below=opened)
        self.iterations, self.closed, self.sparsity_weight = iterations, closed, sparsity_weight
        self.logits = nn.Parameter(torch.full((len(units),), float(opened)))
        # The iteration that closed a unit, 0 while it is open. Floating point, since ESPnet's averaging sums integers.
        self.register_buffer("closed_at", torch.zeros(len(units)))

    def weights(self, size: str, step: int) -> Tensor:
        return torch.sigmoid(self.logits)

    def penalty(self, size: str, step: int) -> Tensor:
        costs = self.units.costs_on(self.logits.device).to(self.logits.dtype)
        sparsity = (1 - torch.sigmoid(self.logits)) @ costs / self.units.total
        return self.sparsity_weight * (sparsity - self._target(self._done(step))).abs()

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        done = self._done(step)
        if done <= int(self.closed_at.max()):
            return
        order, costs = self.order(step), self.units.costs
        removed = float(costs[(self.closed_at > 0).cpu()].sum())
        for unit in reversed(order):
            if removed >= self._target(done) * self.units.total:
                break
            if not self.closed_at[unit]:
                self.closed_at[unit], self.logits[unit] = done, self.closed
                removed += float(costs[unit])

    @torch.no_grad()
    def order(self, step: int) -> list[int]:
        """Open units by their gates, highest first, then the closed units, last closed first."""
        closed, logits = self.closed_at.tolist(), self.logits.tolist()
        return sorted(range(len(self.units)), key=lambda unit: (closed[unit] > 0, -closed[unit], -logits[unit], unit))

    def _done(self, step: int) -> int:
        """Number of iterations due at a step. The last iteration is before the end of the first stage."""
        return min(step * (self.iterations + 1) // max(self.steps, 1), self.iterations)

    def _target(self, iterations: int) -> float:
        """Share of the full cost that the first ``iterations`` iterations remove."""
        return (1 - min(self.shares.values())) * iterations / self.iterations
