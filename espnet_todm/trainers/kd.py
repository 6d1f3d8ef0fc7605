"""``subnet_trainer: kd``: sandwich sampling with in-place distillation from the max subnet (TODM, arXiv 2309.01947)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, Union

from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.batch import Stats
from espnet_todm.models.own import check_space, start_sizes
from espnet_todm.models.subnet_trainer import SubnetTrainer, TrainingSetup
from espnet_todm.selection.sandwich import Sandwich
from espnet_todm.trainers.agreement import GradientAgreement
from espnet_todm.trainers.distillation_weight import KD_WEIGHT, DistillationWeight
from espnet_todm.trainers.engine import Pass, sequential_step
from espnet_todm.trainers.loss_weights import LossWeights
from espnet_todm.util.checks import build, check_number

if TYPE_CHECKING:
    from espnet_todm.encoders.supernet import SubsampledFeatures
    from espnet_todm.models.batch import Batch, Posteriors
    from espnet_todm.models.todm import TodmModel


class KDTrainer(SubnetTrainer):
    """Each step trains the max subnet, random subnets and the min subnet. The max subnet is the teacher of the others.

    loss = weighted mean over subnets of: task (max subnet), (1 - w) * task + w * distillation (others).

    Args:
        seed: seed of the subnet sequence. Default: the seed of the training.
        random_subnets, search_space, size_sampling, join: the subnets of a step, see
            :class:`espnet_todm.selection.sandwich.Sandwich`.
        size_weights, moving_weight: weights of the subnets' losses, see
            :class:`espnet_todm.trainers.loss_weights.LossWeights`. Default: equal weights.
        kd_weight, kd_start, kd_only_share: w, see
            :class:`espnet_todm.trainers.distillation_weight.DistillationWeight`. Default: w = 0.5 in every step.
        warmup_steps: number of first steps that train only the max subnet. They are cheaper, and the teacher is untrained.
        divergence: options of :class:`espnet_todm.losses.alpha_divergence.Divergence`.
        agreement_every: steps from one measurement of the gradients' agreement to the next, see
            :class:`espnet_todm.trainers.agreement.GradientAgreement`. 0: none.
    """

    def __init__(
        self,
        model: TodmModel,
        seed: int = 0,
        random_subnets: Union[int, str] = 1,
        search_space: Optional[Mapping[str, Any]] = None,
        size_sampling: Optional[Mapping[str, float]] = None,
        join: Optional[Mapping[str, float]] = None,
        size_weights: Optional[Mapping[str, float]] = None,
        moving_weight: Optional[Sequence[float]] = None,
        kd_weight: float = 0.5,
        kd_start: Optional[Mapping[str, Any]] = None,
        kd_only_share: float = 0.0,
        warmup_steps: int = 0,
        divergence: Optional[Mapping[str, Any]] = None,
        agreement_every: int = 0,
    ) -> None:
        super().__init__()
        check_space(model, search_space)
        check_number("warmup_steps", warmup_steps, at_least=0, whole=True)
        encoder = model.encoder
        table = encoder.component_table()
        self.sandwich = Sandwich(table, encoder.sizes, seed, random_subnets, search_space, size_sampling, join)
        if size_weights and search_space:
            raise UserError("size_weights: is for named sizes, not for a search_space")
        self.weights = LossWeights(encoder.sizes, size_weights, moving_weight)
        self.distillation = DistillationWeight(kd_weight, kd_start, kd_only_share)
        self.warmup_steps = warmup_steps
        self.divergence: Divergence = build(Divergence, divergence or {}, "subnet_trainer_conf.divergence")
        self.agreement = GradientAgreement(agreement_every)
        self.planned: Optional[int] = None  # steps of the run, known once it begins

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        subnets = self.picked(step)
        stats: Stats = {}
        largest = self.distillation.largest(step, self.planned)
        teacher: list[Posteriors] = []

        def loss_of(subsampled: SubsampledFeatures, subnet: Subnet) -> Tensor:
            output = model.run_subnet(subsampled, batch, subnet, teacher=teacher[0] if teacher else None)
            stats[f"loss_{subnet.name}"] = output.loss.detach()
            if subnet is subnets[0]:  # the max subnet, which is the teacher
                stats.update(output.stats)
                if largest or model.lends_ranges:
                    teacher.append(output.posteriors.detach())
                stats.update(self.distillation.of_step(model, output, batch, largest))
                return output.loss
            if not largest:
                return output.loss
            kd = model.distillation(teacher[0], output.posteriors, batch, self.divergence)
            stats[f"kd_{subnet.name}"] = kd.detach()
            weight = stats.get(KD_WEIGHT, largest)
            return (1 - weight) * output.loss + weight * kd

        weights = self.weights.of(subnets, step, self.planned)
        passes = [Pass(partial(loss_of, subnet=subnet), weight) for subnet, weight in zip(subnets, weights)]
        observe = self.agreement.of_step(model, subnets, stats, step)
        loss = sequential_step(
            model.run_subsampling(batch), passes, model.trained_parameters(), batch.context.loss_scale, observe
        )
        return loss, stats

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        """What a size owns starts as what the shared parameters have learned before the size's first step."""
        self.planned = setup.planned_steps
        start_sizes(model, [size for size in model.encoder.sizes if 0 < step == self._begin(size)])

    def _begin(self, size: str) -> int:
        """The first step that may train a size."""
        return max(self.warmup_steps, self.sandwich.joins_at(size, self.planned))

    def picked(self, step: int) -> list[Subnet]:
        return self._picked(step, self.planned)

    def _picked(self, step: int, planned: Optional[int]) -> list[Subnet]:
        return self.sandwich.pick(step, planned)[: 1 if step < self.warmup_steps else None]

    def always_trained(self, model: TodmModel) -> list[str]:
        return [subnet.name for subnet in self.sandwich.in_every_step()][: 1 if self.warmup_steps else None]

    def picked_in(self, updates: int) -> Iterator[list[Subnet]]:
        return (self._picked(step, updates) for step in range(updates))

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        """One step: all sizes have joined. The length of a run is unknown here, so one that has such a step is assumed."""
        starts = self.sandwich.join.values()
        self.planned = 1000 + int(max([self.warmup_steps, *starts]))
        yield max([self.warmup_steps, *(self.sandwich.joins_at(name, self.planned) for name in self.sandwich.join)])
