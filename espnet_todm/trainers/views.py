"""Views of the kd trainer: every subnet of a step sees its own SpecAugment view of the same speech (CR-CTC in a sandwich).

Pairs of subnets may be pulled together on the CTC posteriors of each frame (CR-CTC, arXiv 2410.05101), see
:mod:`espnet_todm.losses.consistency`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import Tensor, nn

from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.errors import UserError
from espnet_todm.losses.consistency import ctc_consistency
from espnet_todm.models.batch import Batch, Features, Posteriors, Stats, SubnetOutput
from espnet_todm.models.subnet_trainer import passes_cost
from espnet_todm.models.tasks import run_ctc
from espnet_todm.models.views import augmented, masked_frames, seeded, warp_and_masks, warped
from espnet_todm.trainers.distillation_weight import DistillationWeight
from espnet_todm.util.checks import check_choice, check_number, check_type

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

INPUT, SUBSAMPLED = "input", "subsampled"
FRAMES_PER_MASK, MASK_WIDTH = 25, 10

Shared = Union[Features, SubsampledFeatures]  # what all subnets of a step share


@dataclass(frozen=True)
class ViewOptions:
    """``views`` of :class:`espnet_todm.trainers.kd.KDTrainer`. A view is a function of (seed, step, name of the subnet).

    where: "input": the masks of the configuration's SpecAugment, drawn anew for each subnet. Normalisation and subsampling
        run once for each. A time warp is the same for all. "subsampled": SpecAugment, normalisation and subsampling run
        once, and each subnet masks subsampled frames.
    consistency: alpha, the weight of the mean consistency of all pairs. It is multiplied by ctc_weight. 0: none.
    both_ways: each subnet of a pair is pulled towards the other. false: only the later one towards the earlier one (the max
        subnet is the first). true costs a forward pass of each subnet but the max one.
    frames_per_mask: "subsampled" only: frames of an utterance for each mask it may have, default 25. The least is 1 mask.
    mask_width: "subsampled" only: maximum width of a mask in frames, default 10.
    """

    where: str = INPUT
    consistency: float = 0.2
    both_ways: bool = True
    frames_per_mask: Optional[int] = None
    mask_width: Optional[int] = None

    def __post_init__(self) -> None:
        check_choice("views.where", self.where, (INPUT, SUBSAMPLED))
        check_number("views.consistency", self.consistency, at_least=0)
        check_type("views.both_ways", self.both_ways, bool)
        for key in ("frames_per_mask", "mask_width"):
            value = getattr(self, key)
            if value is not None:
                check_number(f"views.{key}", value, at_least=1, whole=True)
                if self.where == INPUT:
                    raise UserError(f"views.{key}: {value} is for where: {SUBSAMPLED}; set masks in specaug_conf")


class Views(nn.Module):
    """The views of a training, and the weight of their consistency.

    The weight is alpha times the readiness of the max subnet before the step, see
    :class:`espnet_todm.trainers.distillation_weight.DistillationWeight`. On the plateau of CTC posteriors are nearly all
    blank; a subnet that is pulled towards them learns only that. The device is waited for until the weight is above 0 for
    the first time: before that, steps have no passes ahead.

    Raises UserError if the model's views would be equal, or if it has no posteriors to compare.
    """

    def __init__(
        self,
        options: ViewOptions,
        model: TodmModel,
        seed: int = 0,
        start: Optional[Mapping[str, Any]] = None,
        dropout: bool = True,
    ) -> None:
        super().__init__()
        if options.where == INPUT and warp_and_masks(model.specaug)[1] is None:
            raise UserError(
                f"views.where: {INPUT!r} needs a SpecAugment with masks, without which all views are equal; set specaug:"
                f" specaug or specaug: todm_specaug, or say where: {SUBSAMPLED}"
            )
        if options.consistency and model.ctc is None:
            raise UserError(
                f"views.consistency: {options.consistency} needs a CTC output, but ctc_weight is 0; say consistency: 0"
            )
        self.options, self.seed, self.dropout = options, seed, dropout
        self.start = DistillationWeight(1.0, start or {}) if options.consistency else None
        self.begun = False  # only saves time: passes ahead change nothing while the weight is 0

    def of_step(self, model: TodmModel, batch: Batch, step: int, subnets: Sequence[Subnet], stats: Stats) -> StepViews:
        """The views of a training step that trains these subnets, in this order. Adds the weight to ``stats``."""
        views = StepViews(self.options, model, batch, f"{self.seed} {step}", self.dropout)
        if self.start is not None and len(subnets) > 1:
            weight = self.options.consistency * self.start.readiness()
            self.begun = self.begun or bool(weight > 0)
            if self.begun:
                views.compare(subnets, weight)
            stats["consistency_weight"] = weight
        return views

    def begin(self) -> None:
        """Let steps have their passes ahead although the weight is 0, so that a measurement of a fresh model has them."""
        self.begun = self.start is not None

    def note(self, model: TodmModel, output: SubnetOutput, batch: Batch) -> None:
        """Call with the max subnet's output of each step."""
        if self.start is not None:
            self.start.of_step(model, output, batch, 1.0)

    def extra_cost(self, table: ComponentTable, steps: Sequence[Sequence[Subnet]]) -> float:
        """Cost of steps that train these subnets, beyond that of the subnets on one view, in steps of one full model. A
        forward pass is a third of a step. All steps count as steps with consistency, although it waits at first."""
        others = [subnets[1:] for subnets in steps]
        front = table.rest.flops / table.cost(table.full()).flops
        own_fronts = front * sum(map(len, others)) if self.options.where == INPUT else 0.0
        if not (self.options.consistency and self.options.both_ways):
            return own_fronts
        blocks = passes_cost(table, others) - len(steps) * front
        return own_fronts + (own_fronts + blocks) / 3


class StepViews:
    """The views of one step, and the consistency of its subnets. ``seed``: text, different in each step.

    ``shared``: what runs once for all subnets. The later subnets run once more, first and without gradient, so that earlier
    ones can be pulled towards them. The memory of a step is that of one subnet's pass, with one set of CTC logits (B, T, V)
    for each subnet. ``dropout``: whether passes ahead have dropout, as subnets below the max one have.
    """

    def __init__(self, options: ViewOptions, model: TodmModel, batch: Batch, seed: str, dropout: bool = True) -> None:
        self.options, self.model, self.batch, self.seed, self.dropout = options, model, batch, seed, dropout
        self.warp, self.masks = warp_and_masks(model.specaug)
        self.logits: dict[str, Tensor] = {}  # of each subnet, its own pass or the one ahead
        self.weight: Optional[Tensor] = None  # of the sum of the terms; None: nothing is compared
        self.shared = self._run_shared()

    def _run_shared(self) -> Shared:
        if self.options.where == SUBSAMPLED:
            return self.model.run_subsampling(self.batch)
        return warped(self.model.run_features(self.batch), self.warp, f"warp {self.seed}")

    def of(self, shared: Shared, subnet: Subnet, model: Optional[TodmModel] = None) -> SubsampledFeatures:
        """The subsampled features of a subnet's view. ``shared``: the attribute of this name, or a leaf in its place.
        ``model``: another model that sees this view of the input, such as a teacher."""
        view = f"view {self.seed} {subnet.name}"
        if isinstance(shared, Features):
            masks = None if self.masks is None else partial(augmented, self.masks, view)
            return (model or self.model).run_view(shared, self.batch, masks)
        frames, width = self.options.frames_per_mask or FRAMES_PER_MASK, self.options.mask_width or MASK_WIDTH
        return masked_frames(shared, view, frames, width)

    @torch.no_grad()
    def compare(self, subnets: Sequence[Subnet], weight: Tensor) -> None:
        """Begin to compare these subnets, which then run in this order. ``weight``: of the mean over pairs, a scalar."""
        ways = 2 if self.options.both_ways else 1
        self.weight = weight * self.model.ctc_weight / (ways * len(subnets) * (len(subnets) - 1) / 2)
        if not self.options.both_ways:
            return
        for subnet in subnets[1:]:
            ahead = replace(self.of(self.shared, subnet), dropout=self.dropout)
            with _unchanged_statistics(self.model), seeded(f"ahead {self.seed} {subnet.name}", weight.device):
                self.logits[subnet.name] = run_ctc(self.model, ahead, self.batch, subnet)
        torch.clear_autocast_cache()  # weights that were cast without gradient must not be used with one

    def consistency(self, subnet: Subnet, posteriors: Posteriors, stats: Stats) -> Optional[Tensor]:
        """This subnet's part of the weighted consistency: a scalar. None if it is pulled towards no other subnet.

        The statistic ``consistency_<subnet>`` is the mean over those that pull it, in nats per utterance.
        """
        if self.weight is None or posteriors.ctc is None:
            return None
        others = [logits for name, logits in self.logits.items() if name != subnet.name]
        self.logits[subnet.name] = posteriors.ctc.detach()
        if not others:
            return None
        terms = ctc_consistency(others, posteriors.ctc, posteriors.lengths)
        stats[f"consistency_{subnet.name}"] = terms.detach() / len(others)
        return self.weight * terms


@contextmanager
def _unchanged_statistics(model: TodmModel) -> Iterator[None]:
    """Restores the running statistics of batch norms, which a pass in training mode changes."""
    names = ("running_mean", "running_var")
    buffers = [buffer for name, buffer in model.encoder.named_buffers() if name.endswith(names)]
    kept = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, kept):
        buffer.copy_(value)
