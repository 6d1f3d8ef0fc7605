"""The one-cycle learning rate of OrthoSoftmax (arXiv 2501.18895): straight lines up, down, and down to almost nothing."""

from __future__ import annotations

from typing import Any, Optional

from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import _LRScheduler

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number

NAME = "one_cycle_linear"


class OneCycleLinear(_LRScheduler, AbsBatchStepScheduler):
    """Learning rate of update n: start -> peak -> end -> final, linear in n, and final ever after.

    The paper's runs (its reference code): LibriSpeech has these defaults; TED-LIUM 2 has up_share 0.44, down_share 0.44,
    end 4.0e-5. Rates are absolute: every parameter group has the same, and the optimizer's own ``lr`` plays no part.

    Args:
        optimizer: whose rates are set.
        total_steps: updates in the run; must be given.
        peak: highest rate.
        start: rate of the first update.
        end: rate at the end of the second line; default as ``start``.
        final: rate of the last update.
        up_share, down_share: shares of the run in which the rate rises, and falls to ``end``; the last line has the rest.
        last_epoch: updates done before, less one; -1 for a new training.

    Raises:
        UserError: an option outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: Optional[int] = None,
        peak: float = 4e-4,
        start: float = 4e-6,
        end: Optional[float] = None,
        final: float = 1e-8,
        up_share: float = 0.45,
        down_share: float = 0.45,
        last_epoch: int = -1,
    ) -> None:
        end = start if end is None else end
        check_number(f"{NAME}: total_steps", total_steps, at_least=1, whole=True)
        check_number(f"{NAME}: peak", peak, above=0)
        for key, rate in (("start", start), ("end", end), ("final", final)):
            check_number(f"{NAME}: {key}", rate, at_least=0, at_most=peak)
        check_number(f"{NAME}: up_share", up_share, at_least=0, at_most=1)
        check_number(f"{NAME}: down_share", down_share, at_least=0, at_most=1)
        if up_share + down_share > 1:
            raise UserError(f"{NAME}: up_share: {up_share} and down_share: {down_share} are together more than 1")
        total_steps = total_steps or 0
        turns = (0.0, up_share * total_steps, (up_share + down_share) * total_steps, float(total_steps))
        self.corners = list(zip(turns, (start, peak, end, final)))  # (updates done, rate)
        super().__init__(optimizer, last_epoch)  # sets the first learning rates, so it comes last

    def rate(self, step: int) -> float:
        """The learning rate after ``step`` updates."""
        for (begin, before), (until, after) in zip(self.corners, self.corners[1:]):
            if step < until:
                return before + (after - before) * (step - begin) / (until - begin)
        return self.corners[-1][1]

    def get_lr(self) -> list[Any]:
        """The learning rate of each parameter group."""
        return [self.rate(self.last_epoch) for _ in self.base_lrs]
