"""Eden and Eden2: learning rates that decrease as powers of the number of updates (and epochs), after a short warm-up.

Source: icefall, zipformer/optim.py; the schedules that ScaledAdam is used with.
"""

from __future__ import annotations

from typing import Any

from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import _LRScheduler

from espnet_todm.util.checks import check_number


class _BatchSchedule(_LRScheduler, AbsBatchStepScheduler):
    """A factor on the base learning rate of each group, updated after each update. ``last_epoch`` counts updates."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float,
        warmup_batches: float,
        warmup_start: float,
        last_epoch: int,
    ) -> None:
        name = type(self).__name__.lower()
        check_number(f"{name}: lr_batches", lr_batches, above=0)
        check_number(f"{name}: warmup_batches", warmup_batches, at_least=0)
        check_number(f"{name}: warmup_start", warmup_start, at_least=0, at_most=1)
        self.lr_batches = lr_batches
        self.warmup_batches = warmup_batches
        self.warmup_start = warmup_start
        super().__init__(optimizer, last_epoch)  # sets the first learning rates, so it comes last

    def factor(self) -> float:
        """The learning rate as a share of the base learning rate."""
        raise NotImplementedError

    def warmup(self) -> float:
        """w: rises linearly from ``warmup_start`` to 1 within ``warmup_batches`` updates."""
        if self.last_epoch >= self.warmup_batches:
            return 1.0
        return self.warmup_start + (1 - self.warmup_start) * self.last_epoch / self.warmup_batches

    def get_lr(self) -> list[Any]:
        """The learning rate of each parameter group."""
        factor = self.factor()
        return [base * factor for base in self.base_lrs]


class Eden(_BatchSchedule):
    """lr = base ((b^2 + B^2) / B^2)^(-1/4) ((e^2 + E^2) / E^2)^(-1/4) w, with b updates and e epochs completed.

    ESPnet calls ``step()`` after each update; the trainer calls ``set_epoch()`` at the start of each epoch. If nothing
    calls ``set_epoch()``, e stays 0: use Eden2 instead.

    Args:
        optimizer: every parameter group keeps its own base learning rate.
        lr_batches: B, in updates.
        lr_epochs: E, in epochs.
        warmup_batches: length of the warm-up, in updates.
        warmup_start: w at the first update (recipes: 0.1).
        last_epoch: initial b minus one update; -1 for a new training.

    Raises:
        UserError: an option outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float = 7500.0,
        lr_epochs: float = 3.5,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
        last_epoch: int = -1,
    ) -> None:
        check_number("eden: lr_epochs", lr_epochs, above=0)
        self.lr_epochs = lr_epochs
        self.completed_epochs = 0
        super().__init__(optimizer, lr_batches, warmup_batches, warmup_start, last_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of completed epochs (0 in the first one). The learning rates change immediately."""
        check_number("eden: epoch", epoch, at_least=0, whole=True)
        self.completed_epochs = epoch
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        self._last_lr = rates

    def factor(self) -> float:
        """The learning rate as a share of the base learning rate."""
        batches = 1 + (self.last_epoch / self.lr_batches) ** 2
        epochs = 1 + (self.completed_epochs / self.lr_epochs) ** 2
        return (batches * epochs) ** -0.25 * self.warmup()


class Eden2(_BatchSchedule):
    """lr = base ((b^2 + B^2) / B^2)^(-1/2) w, with b updates completed, independent of epochs. Options as for Eden."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float = 7500.0,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(optimizer, lr_batches, warmup_batches, warmup_start, last_epoch)

    def factor(self) -> float:
        """The learning rate as a share of the base learning rate."""
        return (1 + (self.last_epoch / self.lr_batches) ** 2) ** -0.5 * self.warmup()
