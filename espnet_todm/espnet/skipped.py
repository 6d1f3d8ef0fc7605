"""Skipped steps: ESPnet skips an update whose gradient is not finite, and continues.

The number of skipped steps is logged. Many skipped steps in a row, an epoch without an update, or a validation without a
finite loss end the training. All ranks see the same values, since gradients and reported losses are means over ranks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional

import torch
from espnet2.train.reporter import SubReporter
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.trainers.ranks import several_ranks

MOST_IN_A_ROW = 100
NAMED = 3  # utterances in a message

Batch = tuple[list[str], dict[str, Any]]  # names of utterances; tensors, and their lengths


class SkippedSteps:
    """Yields the batches of an epoch. Before each next batch, it checks whether ESPnet made the last update.

    Loss scaling (float16) skips steps whose scaled gradient overflows, to find its scale. Such a step (finite loss, scale
    above 1) does not count as skipped.

    Args:
        batches: the batches. ``len`` works if they have a length.
        reporter: reporter of the epoch. ESPnet reports the loss of each batch and the gradient norm of each update to it.
        accum_grad: number of batches per update.
        scale: returns the present loss scale. None if losses are not scaled.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        reporter: SubReporter,
        accum_grad: int = 1,
        scale: Optional[Callable[[], float]] = None,
    ) -> None:
        self.batches, self.reporter, self.accum_grad, self.scale = batches, reporter, accum_grad, scale
        self.seen = self.made = self.skipped = self.searching = self.in_a_row = 0
        self.broken: list[str] = []  # utterances of skipped steps whose features are not finite

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        gathered: list[Batch] = []
        for batch in self.batches:
            scale = self.scale() if self.scale is not None else 1.0
            yield batch
            self.seen += 1
            gathered.append(batch)
            if len(gathered) == self.accum_grad:
                self._look(gathered, scale)
                gathered = []

    def _look(self, gathered: Sequence[Batch], scale: float) -> None:
        """Count the update of these batches as made or skipped. Raises UserError for too many skipped in a row."""
        if _finite(self.reporter, "grad_norm", 1):
            self.made, self.in_a_row = self.made + 1, 0
        elif scale > 1 and _finite(self.reporter, "loss", self.accum_grad) == self.accum_grad:
            self.searching += 1
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            self.broken += [name for names, tensors in gathered for name in not_finite(names, tensors)]
            if self.in_a_row >= MOST_IN_A_ROW:
                raise UserError(f"training: {self.in_a_row} steps in a row were skipped: {self._why()}")

    def finish(self) -> None:
        """Call at the end of the epoch. Logs the number of skipped steps. Raises UserError if all were skipped."""
        epoch = f"epoch {self.reporter.get_epoch()}"
        if self.seen < self.accum_grad:
            raise UserError(
                f"accum_grad: {self.accum_grad}, but {epoch} has {self.seen} batches: not enough for one update"
            )
        if self.skipped and not self.made:
            raise UserError(f"training: all {self.skipped} steps of {epoch} were skipped: {self._why()}")
        if self.skipped:
            steps = self.made + self.skipped
            logging.warning("%s: %d of %d steps were skipped: %s", epoch, self.skipped, steps, self._why())

    def _why(self) -> str:
        """The cause of skipped steps. All ranks must call it together, since each has only its own utterances."""
        found = [self.broken]
        if several_ranks():
            found = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(found, self.broken)
        names = sorted({name for names in found for name in names})
        if not names:
            return "loss or gradient not finite, the features are; a lower learning rate or grad_clip may help"
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"features not finite (NaN or Inf) in {', '.join(names[:NAMED])}{more}; mend or remove them"


def not_finite(names: Sequence[str], tensors: dict[str, Any]) -> list[str]:
    """Names of the utterances of a batch with NaN or Inf in any of its tensors (B, ...)."""
    floats = [t for t in tensors.values() if isinstance(t, Tensor) and t.is_floating_point() and len(t) == len(names)]
    return [name for row, name in enumerate(names) if not all(bool(t[row].isfinite().all()) for t in floats)]


def check_validation(reporter: SubReporter) -> None:
    """Log the number of validation batches whose loss is not finite. ESPnet leaves them out of the mean. Raises UserError
    if no batch has a finite loss."""
    batches = len(reporter.stats.get("loss", ()))
    finite, epoch = _finite(reporter, "loss", batches), reporter.get_epoch()
    if batches and not finite:
        raise UserError(
            f"validation of epoch {epoch}: the loss is not finite in any of its {batches} batches; look at the features"
            " (NaN or Inf) or lower the learning rate; the checkpoint is that of the epoch before"
        )
    if finite < batches:
        left_out = batches - finite
        logging.warning("epoch %d: the loss of %d of %d validation batches is not finite", epoch, left_out, batches)


def _finite(reporter: SubReporter, key: str, last: int) -> int:
    """Number of finite values of ``key`` in the last ``last`` batches. A batch that did not report it counts as NaN."""
    values = reporter.stats.get(key, [])
    return sum(math.isfinite(value.value) for value in values[max(0, len(values) - last) :])
