"""``subnet_trainer: aux_loss``: one pass with a loss after several blocks. Each size keeps the blocks up to its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.models.batch import Stats
from espnet_todm.models.subnet_trainer import SizeUpdates, SubnetTrainer
from espnet_todm.trainers.engine import sequential_step
from espnet_todm.util.checks import check_number

if TYPE_CHECKING:
    from espnet_todm.encoders.passes import SubsampledFeatures
    from espnet_todm.models.batch import Batch
    from espnet_todm.models.todm import TodmModel


class AuxLossTrainer(SubnetTrainer):
    """The auxiliary-loss baseline of OrthoSoftmax (arXiv 2501.18895): sizes are the first blocks of the supernet.

    Sizes are written as ``small: {depth: 0.34, drop: last}``. A step costs little more than a step of one model.

    Args:
        seed: every trainer has this argument. This trainer has no randomness and ignores it.
        exit_weight: weight of each size's loss. The loss of the full size has weight 1.
    """

    def __init__(self, model: TodmModel, seed: int = 0, exit_weight: float = 0.3) -> None:
        super().__init__()
        check_number("exit_weight", exit_weight, at_least=0)
        self.exit_weight = exit_weight
        self.exits = {_blocks_of(model, subnet): subnet for subnet in model.encoder.sizes.values()}
        if model.encoder.interctc_use_conditioning and model.size_outputs:
            raise UserError("output_layers: aux_loss feeds back the posteriors of one layer; say output_layers: shared")
        if len(model.encoder.own):
            raise UserError(
                "own_affine, own_branch_scale: aux_loss runs all sizes in one pass with the same norms; leave them out"
            )
        if len(self.exits) < 2:
            raise UserError("sizes: aux_loss needs at least one size below full, such as {depth: 0.5, drop: last}")

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        stats: Stats = {}

        def loss_of(subsampled: SubsampledFeatures) -> Tensor:
            numbers = sorted(self.exits)
            full = self.exits[numbers[-1]]
            losses, between = [], model.between(full.name)
            for number, encoded in zip(
                numbers, model.run_blocks(subsampled, batch, full, exits=numbers, between=between)
            ):
                size = self.exits[number].name
                inside = [taken for taken in between.taken if taken.place < number]
                output = model.task(encoded, subsampled, batch, size, taken=inside)
                stats[f"loss_{size}"] = output.loss.detach()
                if number == numbers[-1]:
                    stats.update(output.stats)
                losses.append(output.loss * (1.0 if number == numbers[-1] else self.exit_weight))
            return torch.stack(losses).sum()

        loss = sequential_step(
            model.run_subsampling(batch), [loss_of], model.trained_parameters(), batch.context.loss_scale
        )
        return loss, stats

    def picked(self, step: int) -> list[Subnet]:
        """The full size alone: one pass through all blocks also computes the smaller sizes."""
        return [self.exits[max(self.exits)]]

    def size_updates(self, sizes: Mapping[str, Subnet], updates: int) -> dict[str, SizeUpdates]:
        return dict.fromkeys(sizes, SizeUpdates(updates))

    def always_trained(self, model: TodmModel) -> list[str]:
        return [subnet.name for subnet in self.exits.values()]


def _blocks_of(model: Any, subnet: Subnet) -> int:
    """Number of blocks that a size keeps. Raises UserError unless they are the first blocks, each of them complete."""
    table = model.encoder.component_table()
    depth = len(subnet.layers)
    if subnet.components != frozenset(key for key in table.by_key if key.layer < depth):
        raise UserError(
            f"sizes.{subnet.name}: aux_loss trains the first blocks, whole; write {{depth: 0.5, drop: last}} or the like"
        )
    return depth
