"""``subnet_trainer: two_stage``: stage 1 learns which units each size keeps, stage 2 trains the sizes as slices.

Warm-up (optional): each step trains only the supernet.
Stage 1: each step trains the supernet and one size drawn at random. The size runs at full width with soft gates.
Stage 2: each step trains the supernet, the smallest size, and one other size drawn at random. Sizes run as slices.
:mod:`espnet_todm.selection` has the methods that choose the units (OrthoSoftmax, arXiv 2501.18895, and others).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Optional, Union

import torch
from torch import Tensor

from espnet_todm.components import FULL, ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.batch import Stats
from espnet_todm.models.own import start_sizes
from espnet_todm.models.subnet_trainer import SizeUpdates, SubnetTrainer, TrainingSetup, count_updates, passes_cost
from espnet_todm.selection.base import Selection
from espnet_todm.selection.known import find_selection
from espnet_todm.selection.units import check_distinct, check_shares, draw, make_units
from espnet_todm.trainers.agreement import GradientAgreement
from espnet_todm.trainers.distillation_weight import KD_WEIGHT, DistillationWeight
from espnet_todm.trainers.engine import Pass, sequential_step
from espnet_todm.trainers.loss_weights import FOCAL, weighted
from espnet_todm.trainers.ranks import per_frame
from espnet_todm.trainers.selection_log import SelectionLog
from espnet_todm.trainers.split_batch import check_split, own_part
from espnet_todm.trainers.switch import SwitchState, convert_older, moved, sorted_orders
from espnet_todm.util.checks import build, check_length, check_number

if TYPE_CHECKING:
    from espnet_todm.encoders.passes import Drop, Gates, SubsampledFeatures
    from espnet_todm.models.batch import Batch, Posteriors
    from espnet_todm.models.todm import TodmModel


class TwoStageTrainer(SubnetTrainer):
    """The loss is L(supernet) + the sum of w L(subnet) + the penalty of the selection. L is the mean per output frame, over
    the frames of all ranks.

    Args:
        seed: seed of the drawn sizes and of the selection. Default: the seed of the training.
        selection: the method that orders the units, a name of :mod:`espnet_todm.selection.known`; default ortho_softmax.
        granularity: unit of the selection: "component" or "layer" (whole modules).
        warmup_steps: number of first steps that train only the supernet. An untrained supernet gives the selection and the
            distillation nothing to learn from.
        stage1_steps, stage1_share: step at which the second stage begins, or that step as a share of the training (default
            0.6). For a selection without learned parameters the default is step 0.
        subnet_weight: w, a number, or "focal": 1 - exp(-L), which reduces the weight of small losses. Default: the value
            of the selection's paper.
        focal_detached: true: no gradient passes through the focal weight.
        kd_weight, kd_start: share of distillation from the supernet's posteriors in a subnet's loss, see
            :class:`espnet_todm.trainers.distillation_weight.DistillationWeight`. Default 0, as in the paper.
        divergence: options of :class:`espnet_todm.losses.alpha_divergence.Divergence`.
        layer_drop: probability, for each utterance, that the supernet skips a module in stage 2. Only modules that the
            smallest size drops completely are skipped.
        agreement_every, split_batch: as in :class:`espnet_todm.trainers.kd.KDTrainer`.
        learned: options of the selection.
    """

    alias_of: ClassVar[Optional[str]] = None  # the selection, if subnet_trainer is the name of a selection

    def __init__(
        self,
        model: TodmModel,
        seed: int = 0,
        selection: Optional[str] = None,
        granularity: str = "component",
        warmup_steps: int = 0,
        stage1_steps: Optional[int] = None,
        stage1_share: float = 0.6,
        subnet_weight: Union[str, float, None] = None,
        focal_detached: bool = True,
        kd_weight: float = 0.0,
        kd_start: Optional[Mapping[str, Any]] = None,
        divergence: Optional[Mapping[str, Any]] = None,
        layer_drop: float = 0.1,
        agreement_every: int = 0,
        split_batch: bool = False,
        **learned: Any,
    ) -> None:
        super().__init__()
        kind = self._kind(selection)
        self.seed, self.warmup_steps, self.stage1_share = seed, warmup_steps, stage1_share
        self.stage1_steps = 0 if stage1_steps is None and not kind.learns else stage1_steps
        self.subnet_weight = kind.subnet_weight if subnet_weight is None else subnet_weight
        self.focal_detached, self.layer_drop = focal_detached, layer_drop
        self.distillation, self.split_batch = DistillationWeight(kd_weight, kd_start), split_batch
        self._check_options()
        encoder = model.encoder
        table = encoder.component_table()
        units = make_units(table, granularity, encoder.criterion)
        self.full, self.keys, self.shares = table.full(), tuple(table.by_key), check_shares(encoder.size_specs, units)
        known_steps = max(0, (self.stage1_steps or 0) - warmup_steps)
        self.selection: Selection = build(
            kind, learned, "subnet_trainer_conf", units, self.shares, known_steps, seed=seed
        )
        self.divergence: Divergence = build(Divergence, divergence or {}, "subnet_trainer_conf.divergence")
        self.agreement = GradientAgreement(agreement_every)
        self.switch = SwitchState(list(self.shares), self.keys)
        self._register_load_state_dict_pre_hook(convert_older)
        encoder.postpone_sizes("the checkpoint is from the first stage of training, before sizes are chosen")

    def _check_options(self) -> None:
        if self.subnet_weight != FOCAL:
            check_number("subnet_weight", self.subnet_weight, at_least=0)
        if self.stage1_steps is not None:
            check_number("stage1_steps", self.stage1_steps, at_least=0, whole=True)
        check_number("stage1_share", self.stage1_share, at_least=0, below=1)
        check_number("warmup_steps", self.warmup_steps, at_least=0, whole=True)
        check_number("layer_drop", self.layer_drop, at_least=0, below=1)
        check_split(self.split_batch, self.distillation.ever)

    def _kind(self, selection: Optional[str]) -> type[Selection]:
        """Class of the selection. Raises UserError for an unknown one, and for one that differs from the alias."""
        if self.alias_of is not None and selection not in (None, self.alias_of):
            raise UserError(
                f"selection: {selection!r} under subnet_trainer: {self.alias_of}; say subnet_trainer: two_stage"
            )
        return find_selection(selection or self.alias_of or "ortho_softmax")

    @property
    def decided(self) -> bool:
        """Whether the components of the sizes are chosen: true in stage 2."""
        return bool(self.switch.chosen)

    # ---- the step ---------------------------------------------------------------------------------------------------

    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        stats: Stats = {}
        teacher: list[Posteriors] = []
        subnets, utterances = self.picked(step), len(batch.text)
        # What the selection learns is in float32, with use_amp too.
        in_float32 = partial(torch.autocast, batch.speech.device.type, enabled=False)

        def loss_of(subsampled: SubsampledFeatures, number: int, subnet: Subnet) -> Tensor:
            subsampled, heard = own_part(self.split_batch, subsampled, batch, number, len(subnets), step)
            if subnet.name == FULL:
                output = model.run_subnet(subsampled, heard, subnet, drop=self._droppable())
                if self.distillation.weight or (model.lends_ranges and not self.split_batch):
                    teacher.append(output.posteriors.detach())
                stats.update(output.stats, loss_full=output.loss.detach())
                stats.update(self.distillation.of_step(model, output, heard, self.distillation.weight))
                return per_frame(output.loss, subsampled.lengths, utterances)
            with in_float32():
                gates = self._gates(subnet, step)
            output = model.run_subnet(subsampled, heard, subnet, gates, teacher=teacher[0] if teacher else None)
            stats[f"loss_{subnet.name}"] = output.loss.detach()
            loss = per_frame(output.loss, subsampled.lengths, utterances)
            loss = weighted(loss, self.subnet_weight, self.focal_detached)
            if not self.distillation.weight:
                return loss
            kd = model.distillation(teacher[0], output.posteriors, batch, self.divergence)
            weight = stats.get(KD_WEIGHT, self.distillation.weight)
            return (1 - weight) * loss + per_frame(weight * kd, subsampled.lengths, utterances)

        passes: list[Pass[Any]] = [partial(loss_of, number=n, subnet=subnet) for n, subnet in enumerate(subnets)]
        if not self.decided and step >= self.warmup_steps:
            with in_float32():
                passes += self._penalty(self._drawn(step), step - self.warmup_steps, stats)
        observe = self.agreement.of_step(model, subnets, stats, step)
        loss = sequential_step(
            model.run_subsampling(batch), passes, model.trained_parameters(), batch.context.loss_scale, observe
        )
        return loss, stats

    def _gates(self, subnet: Subnet, step: int) -> Optional[Gates]:
        """The soft gates of a size in the first stage."""
        if self.decided:
            return None
        return self.selection.units.gates(self.selection.weights(subnet.name, step - self.warmup_steps))

    def _penalty(self, size: str, step: int, stats: Stats) -> list[Pass[Any]]:
        """The selection's penalty as a separate pass, which does not use the speech."""
        penalty = self.selection.penalty(size, step)
        if penalty is None:
            return []
        stats["penalty"] = penalty.detach()
        return [lambda subsampled: penalty]

    def picked(self, step: int) -> list[Subnet]:
        if not self.decided:
            gated = Subnet(self._drawn(step), self.full.components)
            return [self.full, gated][: 1 if step < self.warmup_steps else None]
        (smallest, *middle), chosen = self.shares, self.switch.chosen
        between = [chosen[draw(self.seed, step, "middle", middle)]] if middle else []
        return [self.full, *between, chosen[smallest]]

    def _drawn(self, step: int) -> str:
        return draw(self.seed, step, "size", list(self.shares))

    def _droppable(self) -> Drop:
        """Modules that the smallest size drops completely, with their probability of layer drop."""
        if not (self.decided and self.layer_drop):
            return {}
        kept = {(key.layer, key.module) for key in self.switch.chosen[next(iter(self.shares))].components}
        return {place: self.layer_drop for place in self.selection.units.places if place not in kept}

    # ---- the switch -------------------------------------------------------------------------------------------------

    def prepare(self, model: TodmModel, step: int, setup: TrainingSetup) -> None:
        if step and step == self.warmup_steps:
            start_sizes(model, self.shares)
        if self.decided:
            return
        if setup.planned_steps is not None or not self.selection.steps:
            self.selection.last_for(self._first_stage(setup) - self.warmup_steps)
        log, learned = SelectionLog(setup.output_dir), step - self.warmup_steps
        if learned >= self.selection.steps:
            self.decide(model, learned, setup.optimizers)
            log.write_cards(model, self.switch.chosen)
        elif learned >= 0:
            self.selection.before_step(learned)
            log.record(self.selection, learned)

    def _first_stage(self, setup: TrainingSetup) -> int:
        """The step that begins the second stage. Raises UserError when it is not before the end of the training, not after
        the warm-up, or when the length of the training is unknown."""
        end = self._end_of_first_stage(setup)
        if self.warmup_steps and self.warmup_steps >= end:
            raise UserError(f"warmup_steps: {self.warmup_steps} must be below the {end} steps before the second stage")
        return end

    def _end_of_first_stage(self, setup: TrainingSetup) -> int:
        if self.stage1_steps is not None:
            if setup.planned_steps is not None and self.stage1_steps >= setup.planned_steps:
                raise UserError(
                    f"stage1_steps: {self.stage1_steps} is as long as the whole run of {setup.planned_steps} steps; a second"
                    " stage must follow"
                )
            return self.stage1_steps
        if not self.stage1_share:
            return 0
        planned = check_length("stage1_share", setup.planned_steps, "give stage1_steps")
        return max(1, int(self.stage1_share * planned))

    def decide(self, model: TodmModel, step: int, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        """Choose the components of the sizes, sort the components of every module, and begin stage 2.

        Components of smaller sizes come first. A slice is then the first part of a module: a view of its weights, no copy.
        """
        chosen = self.selection.units.nested(self.selection.order(step), self.shares)
        check_distinct({FULL: self.full, **chosen})
        orders = sorted_orders(self.keys, chosen)
        states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
        model.encoder.reorder(orders, states)
        if model.weight_average is not None:
            model.weight_average.restart()
        self.switch.choose(moved(orders, chosen))
        self.restore(model)
        for name, subnet in model.encoder.sizes.items():
            share = self.selection.units.table.share(subnet, self.selection.units.criterion)
            logging.info("size %s keeps %d components, %.1f%% of the cost", name, len(subnet.components), 100 * share)

    def restore(self, model: TodmModel) -> None:
        """Give the model the chosen sizes. Raises UserError if the model uses a size that is not chosen yet."""
        if self.decided:
            model.encoder.choose({FULL: self.full, **self.switch.chosen})
        elif model.encoder.subnet.name != FULL:
            model.encoder.find_subnet(model.encoder.subnet.name)

    def walk_through(self, model: TodmModel) -> Iterator[int]:
        """The second stage uses the sizes that an untrained selection chooses."""
        if self.stage1_steps != 0 and (self.stage1_steps or self.stage1_share):
            self.selection.last_for(self.selection.steps or 1)
            yield self.warmup_steps
        if not self.decided:
            self.decide(model, 0)
        yield self.warmup_steps + self.selection.steps

    def model_steps(self, table: ComponentTable, updates: int) -> float:
        """As in the base class. A step of stage 1 has two passes at full width, a step of the warm-up has one."""
        first = min(updates, self._first_stage(TrainingSetup(planned_steps=updates)))
        alone = min(self.warmup_steps, first)
        two = (first - alone) * passes_cost(table, [[self.full, self.full]], self.split_batch)
        return alone + two + passes_cost(table, map(self.picked, range(first, updates)), self.split_batch)

    def size_updates(self, sizes: Mapping[str, Subnet], updates: int) -> dict[str, SizeUpdates]:
        """As in the base class. The full size is trained in every step; in stage 1 the others have soft gates."""
        first = min(updates, self._first_stage(TrainingSetup(planned_steps=updates)))
        gated = Counter(map(self._drawn, range(min(self.warmup_steps, first), first)))
        later = count_updates(sizes, map(self.picked, range(first, updates)))
        counts = {name: SizeUpdates(later[name].sliced, gated[name]) for name in sizes}
        return {**counts, FULL: SizeUpdates(updates)}

    def evaluated(self, model: TodmModel, step: Optional[int]) -> list[Subnet]:
        """All sizes. In the first stage, the sizes that the selection would choose now."""
        if self.decided:
            return list(model.encoder.sizes.values())
        now = self.selection.units.nested(self.selection.order(max(0, (step or 0) - self.warmup_steps)), self.shares)
        return [self.full, *reversed(now.values())]
