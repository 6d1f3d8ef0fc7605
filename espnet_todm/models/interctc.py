"""Intermediate CTC of a size: the posteriors between its blocks, and the cost of self-conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from espnet_todm.components import Cost
from espnet_todm.encoders.interctc import Between
from espnet_todm.errors import UserError

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def check_interctc(model: TodmModel) -> None:
    """Raises UserError if intermediate CTC or self-conditioning is on and the model has no CTC output."""
    if model.ctc is not None:
        return
    for key, value in (
        ("interctc_weight", model.interctc_weight),
        ("interctc_use_conditioning", model.encoder.interctc_use_conditioning),
    ):
        if value:
            raise UserError(f"{key}: {value} needs a CTC output, but ctc_weight is 0")


def between(model: TodmModel, size: str) -> Between:
    """The ``Between`` of one pass of a size. It computes posteriors with the size's CTC output layer, if there is one."""

    def posteriors(output: Tensor) -> Tensor:
        return torch.softmax(model.output_layer(size)(output), dim=-1)

    return Between(posteriors if model.ctc is not None else None)


def conditioning_cost(model: TodmModel, frames: float) -> Cost:
    """Parameters of the conditioning layer, and its FLOPs and the output layer's on ``frames`` frames at all places."""
    layer = model.encoder.conditioning_layer
    if layer is None:
        return Cost(0)
    once = layer.weight.numel() + model.ctc.ctc_lo.weight.numel()
    return Cost(sum(p.numel() for p in layer.parameters()), 2.0 * frames * once * len(model.encoder.places))
