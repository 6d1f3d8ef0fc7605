"""``subnet_trainer: kd``: sandwich sampling with in-place distillation from the max subnet (TODM, arXiv 2309.01947)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, Union

from torch import Tensor

from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.batch import Features, Stats
from espnet_todm.models.own import check_space, start_sizes
from espnet_todm.models.subnet_trainer import SubnetTrainer, TrainingSetup
from espnet_todm.selection.sandwich import Sandwich
from espnet_todm.trainers.agreement import GradientAgreement
from espnet_todm.trainers.averaged_teacher import MAX, make_teacher
from espnet_todm.trainers.distillation_weight import KD_WEIGHT, DistillationWeight
from espnet_todm.trainers.engine import sequential_step
from espnet_todm.trainers.loss_weights import LossWeights
from espnet_todm.trainers.ranks import per_own_utterance
from espnet_todm.trainers.split_batch import check_split, own_part
from espnet_todm.trainers.views import StepViews, ViewOptions, Views
from espnet_todm.util.checks import build, check_choice, check_number

if TYPE_CHECKING:
    from espnet_todm.encoders.passes import SubsampledFeatures
    from espnet_todm.models.batch import Batch, Posteriors, SubnetOutput
    from espnet_todm.models.todm import TodmModel

ALL_SUBNETS, MAX_ONLY = "all", "max_only"


class KDTrainer(SubnetTrainer):
    """Each step trains the max subnet, random subnets and the min subnet. The max subnet is the teacher of the others.

    loss = weighted mean over subnets of: task (max subnet), (1 - w) * task + w * distillation (others)
    + alpha * mean consistency of pairs of subnets, if they see different views.

    Args:
        seed: seed of the subnet sequence. Default: the seed of the training.
        random_subnets, search_space, size_sampling, join: the subnets of a step, see
            :class:`espnet_todm.selection.sandwich.Sandwich`.
        size_weights, moving_weight: weights of the subnets' losses, see
            :class:`espnet_todm.trainers.loss_weights.LossWeights`. Default: equal weights.
        kd_weight, kd_start, kd_only_share: w, see
            :class:`espnet_todm.trainers.distillation_weight.DistillationWeight`. Default: w = 0.5 in every step.
        teacher: the teacher, see :class:`espnet_todm.trainers.averaged_teacher.TeacherOptions`.
        dropout: "all", or "max_only": the other subnets have no dropout behind the subsampling.
        warmup_steps: number of first steps that train only the max subnet. They are cheaper, and the teacher is untrained.
        divergence: options of :class:`espnet_todm.losses.alpha_divergence.Divergence`.
        split_batch: true: each subnet of a step trains on utterances of its own, see
            :mod:`espnet_todm.trainers.split_batch`.
        agreement_every: steps from one measurement of the gradients' agreement to the next, see
            :class:`espnet_todm.trainers.agreement.GradientAgreement`. 0: none.
        views: options of :class:`espnet_todm.trainers.views.Views`. None: all subnets see the same view. The consistency
            waits for the max subnet as ``kd_start`` says, or as with ``kd_start: {}``.
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
        teacher: Union[str, Mapping[str, Any]] = MAX,
        dropout: str = ALL_SUBNETS,
        warmup_steps: int = 0,
        divergence: Optional[Mapping[str, Any]] = None,
        agreement_every: int = 0,
        views: Optional[Mapping[str, Any]] = None,
        split_batch: bool = False,
    ) -> None:
        super().__init__()
        check_space(model, search_space)
        check_number("warmup_steps", warmup_steps, at_least=0, whole=True)
        check_choice("dropout", dropout, (ALL_SUBNETS, MAX_ONLY))
        sizes, table = model.encoder.sizes, model.encoder.component_table()
        self.sandwich = Sandwich(table, sizes, seed, random_subnets, search_space, size_sampling, join)
        if size_weights and search_space:
            raise UserError("size_weights: is for named sizes, not for a search_space")
        self.weights = LossWeights(sizes, size_weights, moving_weight)
        options = None if views is None else build(ViewOptions, views, "subnet_trainer_conf.views")
        self.views = None if options is None else Views(options, model, seed, kd_start, dropout != MAX_ONLY)
        for_views = options is not None and options.consistency and not (kd_weight or kd_only_share)
        self.distillation = DistillationWeight(kd_weight, None if for_views else kd_start, kd_only_share)
        check_split(split_batch, self.distillation.ever, views)
        self.split_batch = split_batch
        self.teacher = make_teacher(model, teacher, self.distillation.ever, views)
        self.dropout, self.warmup_steps = dropout, warmup_steps
        self.divergence: Divergence = build(Divergence, divergence or {}, "subnet_trainer_conf.divergence")
        self.agreement = GradientAgreement(agreement_every)
        self.planned: Optional[int] = None  # steps of the run, known once it begins

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        subnets = self.picked(step)
        stats: Stats = {}
        views = None if self.views is None else self.views.of_step(model, batch, step, subnets, stats)
        largest = self.distillation.largest(step, self.planned)
        shared, teacher = self._shared(model, batch, step, views, stats, largest if len(subnets) > 1 else 0.0)

        def loss_of(shared: Any, number: int, subnet: Subnet, weight: float) -> Tensor:
            is_max = subnet is subnets[0]
            subsampled: SubsampledFeatures = shared if views is None else views.of(shared, subnet)
            subsampled, heard = own_part(self.split_batch, subsampled, batch, number, len(subnets), step)
            if not is_max and self.dropout == MAX_ONLY:
                subsampled = replace(subsampled, dropout=False)
            output = model.run_subnet(subsampled, heard, subnet, teacher=None if is_max or not teacher else teacher[0])
            loss = output.loss
            stats[f"loss_{subnet.name}"] = loss.detach()
            if self.split_batch:
                loss = per_own_utterance(loss, len(heard.text), len(batch.text))
            if is_max:
                stats.update(self._noted(model, output, heard, largest))
                if not teacher and (largest or (model.lends_ranges and not self.split_batch)):
                    teacher.append(output.posteriors.detach())
            elif largest:
                kd = model.distillation(teacher[0], output.posteriors, batch, self.divergence)
                stats[f"kd_{subnet.name}"] = kd.detach()
                share = stats.get(KD_WEIGHT, largest)
                loss = (1 - share) * loss + share * kd
            pull = None if views is None else views.consistency(subnet, output.posteriors, stats)
            return weight * loss if pull is None else weight * loss + pull

        weights = self.weights.of(subnets, step, self.planned)
        passes = [partial(loss_of, number=n, subnet=s, weight=w) for n, (s, w) in enumerate(zip(subnets, weights))]
        observe = self.agreement.of_step(model, subnets, stats, step, own_front=isinstance(shared, Features))
        loss = sequential_step(shared, passes, model.trained_parameters(), batch.context.loss_scale, observe)
        return loss, stats

    def _shared(
        self, model: TodmModel, batch: Batch, step: int, views: Optional[StepViews], stats: Stats, largest: float
    ) -> tuple[Any, list[Posteriors]]:
        """What all subnets of a step share, and the posteriors of an averaged teacher, if a step with distillation has
        one."""
        if self.teacher is None:
            return (model.run_subsampling(batch) if views is None else views.shared), []
        view = self.teacher.view(model, batch, f"{self.sandwich.seed} {step}", views)
        shared = view(model) if views is None else views.shared
        if not largest:
            return shared, []
        output = self.teacher.output(view, batch)
        stats.update(self.distillation.of_step(model, output, batch, largest))
        return shared, [output.posteriors]

    def _noted(self, model: TodmModel, output: SubnetOutput, batch: Batch, largest: float) -> Stats:
        """Note how far the max subnet is. Returns the statistics of its task and of the weight of distillation."""
        if self.views is not None:
            self.views.note(model, output, batch)
        weight = {} if self.teacher is not None else self.distillation.of_step(model, output, batch, largest)
        return {**output.stats, **weight}

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        """What a size owns starts as what the shared parameters have learned before the size's first step."""
        self.planned = setup.planned_steps
        start_sizes(model, [size for size in model.encoder.sizes if 0 < step == self._begin(size)])
        if self.teacher is not None:
            self.teacher.update(model)

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

    def model_steps(self, table: ComponentTable, updates: int) -> float:
        """As in the base class, with what views and an averaged teacher cost: a forward pass is a third of a step."""
        picked = list(self.picked_in(updates))
        extra = 0.0 if self.views is None else self.views.extra_cost(table, picked)
        if self.teacher is not None:
            extra += sum(len(subnets) > 1 for subnets in picked) / 3
        return super().model_steps(table, updates) + extra

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        """One step: all sizes have joined. The length of a run is unknown here, so one that has such a step is assumed."""
        if self.views is not None:
            self.views.begin()
        starts = self.sandwich.join.values()
        self.planned = 1000 + int(max([self.warmup_steps, *starts]))
        yield max([self.warmup_steps, *(self.sandwich.joins_at(name, self.planned) for name in self.sandwich.join)])
