"""A teacher whose weights are an exponential moving average of the model's (mean teacher, arXiv 1703.01780)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import torch
from torch import Tensor, nn

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch, SubnetOutput
from espnet_todm.models.views import augmented
from espnet_todm.trainers.views import SUBSAMPLED, StepViews
from espnet_todm.util.checks import build, check_choice, check_number

if TYPE_CHECKING:
    from espnet_todm.encoders.passes import SubsampledFeatures
    from espnet_todm.models.todm import TodmModel

MAX, EMA = "max", "ema"
View = Callable[["TodmModel"], "SubsampledFeatures"]  # runs a model's layers before the blocks on one view of the batch


@dataclass(frozen=True)
class TeacherOptions:
    """``teacher``. kind: "max": the max subnet of the same step; "ema": the max subnet with averaged weights.

    decay: share of the average that a step keeps, in (0, 1). 0.999 averages over about 1,000 steps.
    """

    kind: str = MAX
    decay: float = 0.999

    def __post_init__(self) -> None:
        check_choice("teacher.kind", self.kind, (MAX, EMA))
        check_number("teacher.decay", self.decay, above=0, below=1)


def make_teacher(
    model: TodmModel,
    options: Union[str, Mapping[str, Any]],
    distils: bool = True,
    views: Optional[Mapping[str, Any]] = None,
) -> Optional[AveragedTeacher]:
    """The averaged teacher that ``teacher`` asks for, a kind or options of :class:`TeacherOptions`; None for "max".

    Raises UserError if no step ``distils``, or if the teacher could not have the max subnet's view (``views``: options of
    ViewOptions).
    """
    named = {"kind": options} if isinstance(options, str) else options
    parsed: TeacherOptions = build(TeacherOptions, named, "teacher")
    if parsed.kind == MAX:
        return None
    if not distils:
        raise UserError(f"teacher: {EMA} has no effect with kd_weight: 0; give it a weight above 0")
    if views is not None and views.get("where") == SUBSAMPLED:
        raise UserError(f"teacher: {EMA} needs views.where: input; it has subsampled features of its own")
    return AveragedTeacher(model, parsed.decay)


class AveragedTeacher(nn.Module):
    """Holds a copy of the model behind its features, with averaged parameters. Buffers are those of the model.

    In update n (0-based) the average keeps min(decay, (1 + n) / (10 + n)) of itself, in the first one nothing. Its state is
    the copy's and the number of updates. The copy is not a submodule, so the optimizer and DistributedDataParallel do
    not see it, and ranks do not exchange it: they compute the same average of the same weights.
    """

    def __init__(self, model: TodmModel, decay: float) -> None:
        super().__init__()
        self.decay, self.updates = decay, 0
        before = (model.frontend, model.specaug)  # the step computes features once
        copied = copy.deepcopy(model, {id(part): None for part in before if part is not None})
        self._held = (copied.eval().requires_grad_(False),)  # in a tuple, since an attribute would make it a submodule

    @property
    def model(self) -> TodmModel:
        return self._held[0]

    @torch.no_grad()
    def update(self, model: TodmModel) -> None:
        """Average with the present weights of ``model``. Call before each training step."""
        device = next(model.parameters()).device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        ours, theirs = dict(self.model.named_parameters()), dict(model.named_parameters())
        averaged = list(ours.values())
        torch._foreach_mul_(averaged, keep)
        torch._foreach_add_(averaged, [theirs[name] for name in ours], alpha=1 - keep)
        buffers = dict(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        self.updates += 1

    def view(self, model: TodmModel, batch: Batch, seed: str, views: Optional[StepViews]) -> View:
        """The max subnet's view of the batch, for ``model`` and this teacher: the same features with the same SpecAugment.

        ``seed``: of SpecAugment, different in each step. ``views``: the step's views, if subnets have their own.
        """
        if views is not None:
            full = model.encoder.sizes[FULL]
            return lambda other: views.of(views.shared, full, other)
        features = model.run_features(batch)
        augment = None if model.specaug is None else partial(augmented, model.specaug, f"teacher {seed}")
        # Normalisation works in place.
        return lambda other: other.run_view(features.with_hidden(features.hidden.clone()), batch, augment)

    @torch.no_grad()
    def output(self, view: View, batch: Batch) -> SubnetOutput:
        """The averaged max subnet's output for a batch, without dropout and graph."""
        quiet = replace(batch, context=replace(batch.context, training=False))
        output = self.model.run_subnet(view(self.model), quiet, self.model.encoder.sizes[FULL])
        torch.clear_autocast_cache()  # weights that were cast without gradient must not be used with one
        return replace(output, posteriors=output.posteriors.detach())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.state_dict().items()
        yield "updates", torch.tensor(self.updates)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self._tensors()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = dict(self._tensors())
        found = {name: state_dict[prefix + name] for name in expected if prefix + name in state_dict}
        missing_keys += [prefix + name for name in expected if name not in found]
        if len(found) < len(expected):
            return
        self.updates = int(found.pop("updates"))
        try:
            self.model.load_state_dict(found)
        except RuntimeError as error:
            error_msgs.append(str(error))
