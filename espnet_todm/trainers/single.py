"""``subnet_trainer: single``: plain training of one fixed size, on the same engine: what a supernet is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from espnet_todm.components import FULL, Subnet
from espnet_todm.models.batch import Stats
from espnet_todm.trainers.base import SubnetTrainer
from espnet_todm.trainers.engine import Pass, sequential_step

if TYPE_CHECKING:
    from espnet_todm.models.batch import Batch
    from espnet_todm.models.todm import TodmModel


class SingleTrainer(SubnetTrainer):
    """Trains one subnet and no other.

    Args:
        size: a size's name or the file of a card.
        seed: accepted as by every trainer; nothing here is random.
    """

    def __init__(self, model: TodmModel, seed: int = 0, size: str = FULL) -> None:
        super().__init__()
        self.subnet = model.encoder.find_subnet(size)

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        part = Pass(lambda front: model.run_subnet(front, batch, self.subnet).loss, 1.0)
        loss = sequential_step(model.run_front(batch), [part], model.trained_parameters(), model.loss_scale())
        return loss, {f"loss_{self.subnet.name}": loss.detach()}

    def picked(self, step: int) -> list[Subnet]:
        return [self.subnet]

    def evaluated(self, model: TodmModel) -> list[Subnet]:
        return [self.subnet]
