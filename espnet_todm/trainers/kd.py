"""``subnet_trainer: kd``: sandwich sampling with in-place distillation from the max subnet (TODM, arXiv 2309.01947)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.batch import Stats
from espnet_todm.models.own import check_space, start_sizes
from espnet_todm.models.subnet_trainer import SubnetTrainer, TrainingSetup
from espnet_todm.selection.sandwich import Sandwich
from espnet_todm.trainers.agreement import GradientAgreement
from espnet_todm.trainers.engine import Pass, sequential_step
from espnet_todm.util.checks import build

if TYPE_CHECKING:
    from espnet_todm.encoders.supernet import SubsampledFeatures
    from espnet_todm.models.batch import Batch, Posteriors
    from espnet_todm.models.todm import TodmModel


class KDTrainer(SubnetTrainer):
    """Each step trains the max subnet, random subnets and the min subnet. The max subnet is the teacher of the others.

    loss = mean over subnets of: task (max subnet), (1 - w) * task + w * distillation (others), with w = ``kd_weight``.

    Args:
        seed: seed of the subnet sequence. Default: the seed of the training.
        random_subnets: number of random subnets of each step.
        search_space: space of the random subnets, see :class:`espnet_todm.selection.sandwich.Sandwich`.
        kd_weight: w in [0, 1]. 0 turns distillation off.
        warmup_steps: number of first steps that train only the max subnet. They are cheaper, and the teacher is untrained.
        divergence: options of :class:`espnet_todm.losses.alpha_divergence.Divergence`.
        agreement_every: steps from one measurement of the gradients' agreement to the next, see
            :class:`espnet_todm.trainers.agreement.GradientAgreement`. 0: none.
    """

    def __init__(
        self,
        model: TodmModel,
        seed: int = 0,
        random_subnets: int = 1,
        search_space: Optional[Mapping[str, Any]] = None,
        kd_weight: float = 0.5,
        warmup_steps: int = 0,
        divergence: Optional[Mapping[str, Any]] = None,
        agreement_every: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(kd_weight, bool) or not isinstance(kd_weight, (int, float)) or not 0 <= kd_weight <= 1:
            raise UserError(f"kd_weight: {kd_weight!r} must be a number in [0, 1]")
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise UserError(f"warmup_steps: {warmup_steps!r} must be a whole number, 0 or more")
        check_space(model, search_space)
        encoder = model.encoder
        self.sandwich = Sandwich(encoder.component_table(), encoder.sizes, seed, random_subnets, search_space)
        self.kd_weight = kd_weight
        self.warmup_steps = warmup_steps
        self.divergence: Divergence = build(Divergence, divergence or {}, "subnet_trainer_conf.divergence")
        self.agreement = GradientAgreement(agreement_every)

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        subnets = self.picked(step)
        stats: Stats = {}
        teacher: list[Posteriors] = []

        def loss_of(subsampled: SubsampledFeatures, subnet: Subnet) -> Tensor:
            output = model.run_subnet(subsampled, batch, subnet, teacher=teacher[0] if teacher else None)
            stats[f"loss_{subnet.name}"] = output.loss.detach()
            if subnet is subnets[0]:  # the max subnet, which is the teacher
                stats.update(output.stats)
                if self.kd_weight or model.lends_ranges:
                    teacher.append(output.posteriors.detach())
                return output.loss
            if not self.kd_weight:
                return output.loss
            kd = model.distillation(teacher[0], output.posteriors, batch, self.divergence)
            stats[f"kd_{subnet.name}"] = kd.detach()
            return (1 - self.kd_weight) * output.loss + self.kd_weight * kd

        passes = [Pass(partial(loss_of, subnet=subnet), 1 / len(subnets)) for subnet in subnets]
        observe = self.agreement.of_step(model, subnets, stats, step)
        loss = sequential_step(
            model.run_subsampling(batch), passes, model.trained_parameters(), batch.context.loss_scale, observe
        )
        return loss, stats

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        yield self.warmup_steps

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        """What a size owns starts as what the shared parameters have learned before its first step."""
        if step and step == self.warmup_steps:
            start_sizes(model, model.encoder.sizes)

    def picked(self, step: int) -> list[Subnet]:
        return self.sandwich.pick(step)[: 1 if step < self.warmup_steps else None]

    def always_trained(self, model: TodmModel) -> list[str]:
        return [subnet.name for subnet in (self.sandwich.full, self.sandwich.smallest)][
            : 1 if self.warmup_steps else None
        ]
