"""``subnet_trainer: single``: plain training of one fixed size on the same engine, as a baseline for a supernet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor

from espnet_todm.components import FULL, Cost, Subnet
from espnet_todm.errors import UserError
from espnet_todm.models.batch import Stats
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.trainers.engine import sequential_step
from espnet_todm.util.checks import is_number
from espnet_todm.util.files import read_optional

if TYPE_CHECKING:
    from espnet_todm.encoders.passes import SubsampledFeatures
    from espnet_todm.models.batch import Batch
    from espnet_todm.models.todm import TodmModel

_SAME_COST = 0.02  # relative; a stock form counts the output layer and FLOPs in slightly other ways


class SingleTrainer(SubnetTrainer):
    """Trains one subnet only.

    Args:
        size: name of a size, or path of a card. A card tells which components to keep, and what they cost; one whose costs
            are others here is of another encoder and refused.
        seed: every trainer has this argument. This trainer has no randomness and ignores it.
    """

    def __init__(self, model: TodmModel, seed: int = 0, size: str = FULL) -> None:
        super().__init__()
        self.subnet = model.encoder.find_subnet(size)
        if size not in model.encoder.sizes:
            _check_card(size, model.component_table().cost(self.subnet))

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        stats: Stats = {}

        def loss_of(subsampled: SubsampledFeatures) -> Tensor:
            output = model.run_subnet(subsampled, batch, self.subnet)
            stats.update(output.stats)
            return output.loss

        loss = sequential_step(
            model.run_subsampling(batch), [loss_of], model.trained_parameters(), batch.context.loss_scale
        )
        stats[f"loss_{self.subnet.name}"] = loss.detach()
        return loss, stats

    def picked(self, step: int) -> list[Subnet]:
        return [self.subnet]

    def evaluated(self, model: TodmModel, step: Optional[int]) -> list[Subnet]:
        return [self.subnet]


def _check_card(path: str, cost: Cost) -> None:
    """Raises UserError if the card states another number of parameters or FLOPs than the components have here."""
    stated: dict[str, Any] = read_optional(Path(path)).get("cost") or {}
    for key, here in (("params", cost.params), ("flops_per_second", cost.flops)):
        there: Any = stated.get(key)
        if is_number(there) and abs(there - here) > _SAME_COST * here:
            raise UserError(
                f"size: {path} is the card of another encoder: its components have {there:g} {key} there and {here:g} here"
            )
