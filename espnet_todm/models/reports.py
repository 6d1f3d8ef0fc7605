"""What validation measures and reports of each size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from espnet_todm.models.batch import Batch, Stats

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def evaluate(model: TodmModel, batch: Batch) -> tuple[Tensor, Stats]:
    """Loss and error rates of every size that is trained; the loss proper is their mean."""
    subnets = model.subnet_trainer.evaluated(model) if model.subnet_trainer else [model.encoder.subnet]
    front = model.run_front(batch)
    stats: Stats = {}
    losses = []
    for subnet in subnets:
        output = model.run_subnet(front, batch, subnet)
        losses.append(output.loss.detach())
        stats[f"loss_{subnet.name}"] = losses[-1]
        stats.update({f"{key}_{subnet.name}": value for key, value in output.stats.items() if value is not None})
    return torch.stack(losses).mean(), stats
