"""The weight of distillation in a subnet's loss, which may wait until its teacher has learned something to teach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn

from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch, Stats, SubnetOutput
from espnet_todm.models.tasks import loss_per_label
from espnet_todm.trainers.ranks import over_ranks
from espnet_todm.util.checks import build, check_length, check_number

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

KD_WEIGHT = "kd_weight"  # the statistic

_KEPT = 0.98  # share of the running average that a step keeps: an average over about 50 steps


@dataclass(frozen=True)
class Start:
    """``kd_start``: bounds of the teacher's task loss in nats per label.

    loss_per_label: distillation has weight 0 above this loss. full_at: it has its whole weight below this loss.
    In between the weight is linear. Raises UserError unless 0 <= full_at < loss_per_label.
    """

    loss_per_label: float = 1.0
    full_at: float = 0.5

    def __post_init__(self) -> None:
        check_number("kd_start.loss_per_label", self.loss_per_label, above=0)
        check_number("kd_start.full_at", self.full_at, at_least=0)
        if self.full_at >= self.loss_per_label:
            raise UserError(f"kd_start.full_at: {self.full_at} must be below loss_per_label: {self.loss_per_label}")


class DistillationWeight(nn.Module):
    """w in a subnet's loss (1 - w) * task + w * distillation.

    Without ``start`` w is ``weight``. With ``start`` = {loss_per_label: a, full_at: b} it depends on the teacher's own
    task loss l, never on the step number alone: w = weight * clip((a - l) / (a - b), 0, 1). l is a running average in
    nats per label over about the last 50 steps, the present one included. It is in the state, so a resumed run has it.
    The ranks sum it up. All of this is tensor arithmetic without a synchronisation with the device.

    Args:
        weight: weight of distillation from a trained teacher, in [0, 1]. 0 turns distillation off.
        start: options of :class:`Start`. None: the weight does not depend on the teacher.
        only_share: share of the run at its end in which ``weight`` is 1: subnets learn from distillation only.
    """

    seen: Tensor  # (2,) float32: nats and labels of the teacher, decayed sums

    def __init__(self, weight: float, start: Optional[Mapping[str, Any]] = None, only_share: float = 0.0) -> None:
        super().__init__()
        check_number("kd_weight", weight, at_least=0, at_most=1)
        check_number("kd_only_share", only_share, at_least=0, below=1)
        self.weight, self.only_share = float(weight), only_share
        self.start: Optional[Start] = None if start is None else build(Start, start, "kd_start")
        if self.start is not None:
            if not self.ever:
                raise UserError("kd_start: has no effect with kd_weight: 0; give it a weight above 0")
            self.register_buffer("seen", torch.zeros(2))

    @property
    def ever(self) -> bool:
        """Whether any step of the run distils."""
        return self.weight > 0 or self.only_share > 0

    def largest(self, step: int, planned: Optional[int]) -> float:
        """The weight with a trained teacher in training step ``step`` of ``planned``. Raises UserError if ``only_share``
        is set and the length of the run is unknown."""
        if not self.only_share:
            return self.weight
        length = check_length("kd_only_share", planned, "leave it out")
        return 1.0 if step >= (1 - self.only_share) * length else self.weight

    def of_step(self, model: TodmModel, output: SubnetOutput, batch: Batch, largest: float) -> Stats:
        """Note the teacher's output of a step. Returns the statistic KD_WEIGHT: w, a number or a float32 scalar; nothing if
        w is the same in every step. ``largest``: value of :meth:`largest`."""
        if self.start is None:
            return {KD_WEIGHT: largest} if self.only_share else {}
        with torch.no_grad():
            self.note(loss_per_label(model, output, batch), batch.text_lengths.sum())
            return {KD_WEIGHT: largest * self.readiness()}

    def note(self, loss: Tensor, labels: Tensor) -> None:
        """Add a batch to the running average: its loss in nats per label and its number of labels, scalars."""
        new = over_ranks(torch.stack([loss.to(self.seen.dtype) * labels, labels.to(self.seen.dtype)]))
        seen = _KEPT * self.seen + new
        self.seen.copy_(torch.where(seen.isfinite().all(), seen, self.seen))  # ESPnet skips a step that is not finite

    def readiness(self) -> Tensor:
        """clip((a - l) / (a - b), 0, 1): scalar; 0 before the first batch."""
        assert self.start is not None
        nats, labels = self.seen
        average = torch.where(labels > 0, nats / labels, math.inf)
        ramp = (self.start.loss_per_label - average) / (self.start.loss_per_label - self.start.full_at)
        return ramp.clamp(0, 1)
