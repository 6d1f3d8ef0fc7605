"""What a subnet trainer is to the model: it decides which subnets a step trains, and with which losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor, nn

from espnet_todm.components import ComponentTable, Key, Subnet

if TYPE_CHECKING:
    from espnet_todm.models.batch import Batch, Stats
    from espnet_todm.models.todm import TodmModel


@dataclass(frozen=True)
class TrainingSetup:
    """What of ESPnet's training a trainer may need: its optimizers, how many steps it will make, its folder on the first
    rank."""

    optimizers: Sequence[torch.optim.Optimizer] = ()
    planned_steps: Optional[int] = None
    output_dir: Optional[Path] = None


class SubnetTrainer(nn.Module, ABC):
    """Built once per training from ``subnet_trainer_conf``; the model calls it on every training batch.

    Its results must depend on (seed, step) and the batch alone, so that all ranks and a resumed training agree. What it
    learns or decides goes into its state: it is a part of the model, and so of every checkpoint.
    """

    @abstractmethod
    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        """The loss of training step ``step`` (0-based), ready for backward, and what to report.

        That is ``loss_<name>`` of each subnet, and of the largest one what its task reports, by ESPnet's own names.
        """

    @abstractmethod
    def picked(self, step: int) -> list[Subnet]:
        """The subnets that training step ``step`` (0-based) trains."""

    def always_trained(self, model: TodmModel) -> list[str]:
        """Names of the subnets whose loss every step reports, so that a criterion may name it; the largest one's always."""
        return [self.picked(0)[0].name]

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        """Called before the batch of training step ``step``, outside autograd and outside DistributedDataParallel. Here, and
        nowhere else in a training, a trainer may change the model."""

    def restore(self, model: TodmModel) -> None:
        """Called after the model's state was loaded."""

    def model_steps(self, table: ComponentTable, updates: int) -> float:
        """Cost of so many updates in steps of one full model: by the FLOPs of their passes, the shared part once each."""
        return passes_cost(table, map(self.picked, range(updates)))

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        """Take a fresh model through its training in great strides, for trying and measuring it: the number of one step of
        each kind that training has, in order, the kind that most of it is made of last. The model is ready for the step that
        was given last."""
        yield 0

    def evaluated(self, model: TodmModel, step: Optional[int]) -> list[Subnet]:
        """The subnets that validation measures after training step ``step``; None: of a model that is not in training."""
        return list(model.encoder.sizes.values())


def passes_cost(table: ComponentTable, steps: Iterable[Sequence[Subnet]]) -> float:
    """Sum over steps of (F + sum E_i) / (F + E_max), F and E_i being FLOPs of the shared part and of each subnet's own."""
    rest, full = table.rest.flops, table.cost(table.full()).flops
    own: dict[frozenset[Key], float] = {}  # steps pick the same few sets over and over

    def own_flops(subnet: Subnet) -> float:
        if subnet.components not in own:
            own[subnet.components] = table.cost(subnet).flops - rest
        return own[subnet.components]

    return sum(rest + sum(map(own_flops, subnets)) for subnets in steps) / full
