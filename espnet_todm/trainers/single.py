"""``subnet_trainer: single``: plain training of one fixed size on the same engine, as a baseline for a supernet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from torch import Tensor

from espnet_todm.components import FULL, Subnet
from espnet_todm.models.batch import Stats
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.trainers.engine import Pass, sequential_step

if TYPE_CHECKING:
    from espnet_todm.encoders.supernet import SubsampledFeatures
    from espnet_todm.models.batch import Batch
    from espnet_todm.models.todm import TodmModel


class SingleTrainer(SubnetTrainer):
    """Trains one subnet only.

    Args:
        size: name of a size, or path of a card.
        seed: every trainer has this argument. This trainer has no randomness and ignores it.
    """

    def __init__(self, model: TodmModel, seed: int = 0, size: str = FULL) -> None:
        super().__init__()
        self.subnet = model.encoder.find_subnet(size)

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        stats: Stats = {}

        def loss_of(subsampled: SubsampledFeatures) -> Tensor:
            output = model.run_subnet(subsampled, batch, self.subnet)
            stats.update(output.stats)
            return output.loss

        loss = sequential_step(
            model.run_subsampling(batch), [Pass(loss_of, 1.0)], model.trained_parameters(), batch.context.loss_scale
        )
        stats[f"loss_{self.subnet.name}"] = loss.detach()
        return loss, stats

    def picked(self, step: int) -> list[Subnet]:
        return [self.subnet]

    def evaluated(self, model: TodmModel, step: Optional[int]) -> list[Subnet]:
        return [self.subnet]
