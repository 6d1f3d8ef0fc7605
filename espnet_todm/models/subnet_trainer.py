"""Base class of subnet trainers. A subnet trainer decides which subnets a step trains, and with which losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """ESPnet's training as a trainer may need it: the optimizers, the planned number of steps (None if unknown), and the
    output folder (None on all ranks but the first)."""

    optimizers: Sequence[torch.optim.Optimizer] = ()
    planned_steps: Optional[int] = None
    output_dir: Optional[Path] = None


@dataclass(frozen=True)
class SizeUpdates:
    """Updates in which a size was trained: as itself, and in a first stage at full width with soft gates."""

    sliced: int = 0
    gated: int = 0


class SubnetTrainer(nn.Module, ABC):
    """Built once per training from ``subnet_trainer_conf``. The model calls it on every training batch.

    Its results must depend only on (seed, step) and the batch, so that all ranks and a resumed training agree. Everything
    that it learns or decides belongs into its state. It is a submodule of the model, so every checkpoint has this state.
    ``split_batch``: whether the subnets of a step share out its utterances instead of training on all of them.
    """

    split_batch = False

    @abstractmethod
    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        """The loss of training step ``step`` (0-based), a scalar ready for backward, and the statistics.

        The statistics are ``loss_<name>`` of each subnet, and those of the largest subnet's task under ESPnet's names.
        """

    @abstractmethod
    def picked(self, step: int) -> list[Subnet]:
        """The subnets that training step ``step`` (0-based) trains."""

    def picked_in(self, updates: int) -> Iterator[list[Subnet]]:
        """The subnets of each step of a training of ``updates`` steps."""
        return map(self.picked, range(updates))

    def always_trained(self, model: TodmModel) -> list[str]:
        """Names of the subnets whose loss every step reports, the largest one included. Criteria may use these losses."""
        return [self.picked(0)[0].name]

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        """Called before the batch of training step ``step``, outside autograd and DistributedDataParallel. During training
        a trainer may change the model only here."""

    def restore(self, model: TodmModel) -> None:
        """Called after the model has loaded a state."""

    def model_steps(self, table: ComponentTable, updates: int) -> float:
        """Cost of ``updates`` training steps, in steps of one full model. It is the ratio of their FLOPs; each step counts
        the shared part once."""
        return passes_cost(table, self.picked_in(updates), self.split_batch)

    def size_updates(self, sizes: Mapping[str, Subnet], updates: int) -> dict[str, SizeUpdates]:
        """For each size, in how many of ``updates`` training steps it was trained."""
        return count_updates(sizes, self.picked_in(updates))

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        """Yield the number of one step for each phase of a training, in order, for dry runs and measurements. The longest
        phase is last. After each yield, the fresh model is ready for that step."""
        yield 0

    def evaluated(self, model: TodmModel, step: Optional[int]) -> list[Subnet]:
        """The subnets that validation evaluates after training step ``step``. None means outside of training."""
        return list(model.encoder.sizes.values())


def passes_cost(table: ComponentTable, steps: Iterable[Sequence[Subnet]], split: bool = False) -> float:
    """Sum over steps of (F + sum E_i) / (F + E_max). F is the FLOPs of the shared part, E_i those of subnet i without it.
    With ``split``, each of n subnets runs on the n-th part of the batch: the mean of E_i instead of the sum."""
    rest, full = table.rest.flops, table.cost(table.full()).flops
    own: dict[frozenset[Key], float] = {}  # a cache: steps repeat the same few subnets

    def own_flops(subnet: Subnet) -> float:
        if subnet.components not in own:
            own[subnet.components] = table.cost(subnet).flops - rest
        return own[subnet.components]

    of_steps = (rest + sum(map(own_flops, subnets)) / (len(subnets) if split else 1) for subnets in steps)
    return sum(of_steps) / full


def count_updates(sizes: Mapping[str, Subnet], steps: Iterable[Sequence[Subnet]]) -> dict[str, SizeUpdates]:
    """For each size, the number of steps that picked its components, under whatever name."""
    counts: dict[frozenset[Key], int] = {}
    for subnets in steps:
        for components in {subnet.components for subnet in subnets}:
            counts[components] = counts.get(components, 0) + 1
    return {name: SizeUpdates(counts.get(subnet.components, 0)) for name, subnet in sizes.items()}
