"""Intermediate CTC of a size: the loss of what was taken between its blocks, and the cost of what is fed back to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from espnet_todm.components import Cost
from espnet_todm.encoders.interctc import Between, Taken
from espnet_todm.encoders.supernet import SubsampledFeatures
from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch, Stats

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def check_interctc(model: TodmModel) -> None:
    """Raises UserError where intermediate CTC has no CTC output to go to."""
    if model.ctc is not None:
        return
    for key, value in (
        ("interctc_weight", model.interctc_weight),
        ("interctc_use_conditioning", model.encoder.interctc_use_conditioning),
    ):
        if value:
            raise UserError(f"{key}: {value} needs a CTC output, but ctc_weight is 0")


def between(model: TodmModel, size: str) -> Between:
    """For a pass of a size: posteriors are those of its own output layer, if it has one."""

    def posteriors(output: Tensor) -> Tensor:
        return torch.softmax(model.output_layer(size)(output), dim=-1)

    return Between(posteriors if model.ctc is not None else None)


def with_intermediate(
    model: TodmModel,
    loss: Tensor,
    taken: Sequence[Taken],
    subsampled: SubsampledFeatures,
    batch: Batch,
    size: str,
    stats: Stats,
) -> Tensor:
    """``(1 - w) * loss + w * mean of the intermediate losses``, w = ``interctc_weight``, as ESPnet has it.

    ``loss`` is CTC's; a size that has no place keeps it as it is.
    """
    from espnet_todm.models.tasks import ctc_task

    if not (model.interctc_weight and taken):
        return loss
    total, weights = torch.zeros_like(loss), torch.zeros_like(loss)
    for place, output, weight in taken:
        intermediate, _ = ctc_task(model, output, subsampled, batch, size, stats, f"interctc_layer{place}")
        assert intermediate is not None  # there is a CTC output
        total, weights = total + weight * intermediate, weights + weight
    # Soft gates may leave nearly nothing of all places together; what they then lose, the last output wins.
    share = model.interctc_weight * weights / weights.clamp(min=1.0)
    return (1 - share) * loss + model.interctc_weight * total / weights.clamp(min=1.0)


def conditioning_cost(model: TodmModel, frames: float) -> Cost:
    """Parameters of what feeds posteriors back; FLOPs on so many frames, with the output layer's, at all places."""
    layer = model.encoder.conditioning_layer
    if layer is None:
        return Cost(0)
    once = layer.weight.numel() + model.ctc.ctc_lo.weight.numel()
    return Cost(sum(p.numel() for p in layer.parameters()), 2.0 * frames * once * len(model.encoder.places))
