"""ESPnet's Trainer, extended: batches have their step number, schedulers their epoch, and killed runs can be resumed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional

import torch
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer
from espnet2.utils.build_dataclass import build_dataclass

from espnet_todm.espnet.candidates import candidates
from espnet_todm.espnet.checkpoint_files import guarded_checkpoints, save_checkpoint
from espnet_todm.espnet.criteria import check_criteria
from espnet_todm.espnet.inputs import Batches, without_missing_packages
from espnet_todm.espnet.resumed import TodmTrainerOptions, configuration_holds, configured
from espnet_todm.espnet.skipped import SkippedSteps, check_validation
from espnet_todm.espnet.task_options import check_frozen, noise_by_step
from espnet_todm.iterators.nonspeech import tell_epoch
from espnet_todm.models.fake_int8 import KINDS
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.models.weight_average import published


class TodmTrainer(Trainer):
    """Trains any ESPnet ASR model as the stock trainer does. A supernet gets the step number with each batch."""

    # best_model_criterion in the process that writes files, None in the others.
    criteria: ClassVar[Optional[Sequence[Sequence[str]]]] = None
    last_step: ClassVar[int] = 0  # number of the last training step, for validation

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TodmTrainerOptions:
        """Build the trainer's options from ESPnet's options."""
        options: TodmTrainerOptions = build_dataclass(TodmTrainerOptions, args)
        return options

    @classmethod
    def run(cls, **kwargs: Any) -> None:
        """As in ESPnet, which passes all arguments by name."""
        options, first = kwargs["trainer_options"], kwargs["distributed_option"].dist_rank in (None, 0)
        if isinstance(kwargs["model"], TodmModel):
            check_criteria(kwargs["model"], options, [type(s) for s in kwargs["schedulers"] if s is not None])
            # Without this, DistributedDataParallel gives zeros to what no rank reached, and optimizers decay it.
            options = kwargs["trainer_options"] = replace(options, unused_parameters=True)
        check_frozen(kwargs["model"], options.freeze_param)
        cls.criteria = options.best_model_criterion if first else None
        if first:
            for part in Path(options.output_dir).glob(".*.pth.*.part"):
                part.unlink()  # incomplete files of a killed run
        without_missing_packages(options)
        if not options.use_matplotlib:
            kwargs["plot_attention_iter_factory"] = None  # attention plots need matplotlib too
        batches = getattr(kwargs["train_iter_factory"], "position", None)
        try:
            reporter = candidates(kwargs["model"], configured(options), batches)
            with guarded_checkpoints(), reporter, noise_by_step(options.seed):
                super().run(**kwargs)
        finally:
            cls.criteria = None

    @classmethod
    def resume(cls, **kwargs: Any) -> None:
        """As in ESPnet, which passes all arguments by name. A run killed right after it wrote checkpoint.pth may lack the
        file of that epoch's model, which ESPnet needs at the end, or the links to the best models, which ESPnet would not
        make again. This method restores both from checkpoint.pth, which has the model and the reporter."""
        with configuration_holds(**kwargs):
            Trainer.resume(**kwargs)
        if cls.criteria is None:
            return
        folder, reporter = Path(kwargs["checkpoint"]).parent, kwargs["reporter"]
        last = folder / f"{reporter.get_epoch()}epoch.pth"
        if not last.exists():
            save_checkpoint(published(kwargs["model"].state_dict()), last)
        _link(folder / "latest.pth", last.name)
        for phase, key, mode in cls.criteria:
            if reporter.has(phase, key):
                _link(folder / f"{phase}.{key}.best.pth", f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth")

    @classmethod
    def train_one_epoch(cls, **kwargs: Any) -> bool:
        """As in ESPnet, which passes all arguments by name."""
        model, reporter, scaler = kwargs["model"], kwargs["reporter"], kwargs["scaler"]
        for schedule in kwargs["schedulers"]:
            if hasattr(schedule, "set_epoch"):
                schedule.set_epoch(reporter.get_epoch() - 1)
        tell_epoch(reporter.get_epoch())
        inner, setup = getattr(model, "module", model), _training_setup(**kwargs)
        scale = scaler.get_scale if scaler is not None else None
        steps_of = partial(_training_steps, model=inner, reporter=reporter, setup=setup, scale=scale)
        kwargs["iterator"] = Batches(kwargs["iterator"], "train", steps_of if isinstance(inner, TodmModel) else iter)
        if kwargs["options"].no_forward_run:
            return bool(super().train_one_epoch(**kwargs))
        steps = kwargs["iterator"] = SkippedSteps(kwargs["iterator"], reporter, kwargs["options"].accum_grad, scale)
        with _rounding(kwargs["options"]):
            super().train_one_epoch(**kwargs)
        steps.finish()
        cls.last_step = reporter.get_total_count() - 1
        return False  # otherwise ESPnet ends the run with status 0 if loss scaling skips all steps of an epoch

    @classmethod
    def validate_one_epoch(cls, **kwargs: Any) -> None:
        """As in ESPnet, which passes all arguments by name."""
        kwargs["iterator"] = Batches(kwargs["iterator"], "valid")
        inner = getattr(kwargs["model"], "module", kwargs["model"])
        average = getattr(inner, "weight_average", None)
        if isinstance(inner, TodmModel):
            kwargs["iterator"] = _validation_steps(kwargs["iterator"], cls.last_step, inner.error_rates_every)
        with nullcontext() if average is None else average.applied_to(inner), _rounding(kwargs["options"]):
            super().validate_one_epoch(**kwargs)
        check_validation(kwargs["reporter"])


def _rounding(options: TodmTrainerOptions) -> AbstractContextManager[Any]:
    """The context for the passes of a training: that of ``fake_quantization``, if it has one."""
    kind = KINDS.get(str(options.fake_quantization).lower())  # any case, as ESPnet takes all names
    return nullcontext() if kind is None else kind()


def _link(path: Path, target: str) -> None:
    """Make ``path`` a link to the file ``target`` beside it, if it exists. The user may have removed it."""
    if (path.parent / target).exists():
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def _training_steps(
    batches: Iterable[Any],
    model: TodmModel,
    reporter: SubReporter,
    setup: TrainingSetup,
    scale: Optional[Callable[[], float]],
) -> Iterator[Any]:
    """Yield the batches, each with its step number and the loss scale. Calls the subnet trainer's ``prepare`` before, and
    averages the weights."""
    for names, tensors in batches:
        step = reporter.get_total_count()  # number of batches in all epochs so far, also after a resume
        if model.subnet_trainer is not None:
            model.subnet_trainer.prepare(model, step, setup)
        if model.weight_average is not None:
            model.weight_average.update(model)
        yield names, {**tensors, "step": step, "loss_scale": 1.0 if scale is None else scale()}


def _validation_steps(batches: Iterable[Any], step: int, error_rates_every: int) -> Iterator[Any]:
    """Yield the batches, each with the number of the last training step. The first of ``error_rates_every`` batches has its
    error rates computed. All ranks have parts of the same batch, so they report the same names."""
    for number, (names, tensors) in enumerate(batches):
        yield names, {**tensors, "step": step, "error_rates": number % error_rates_every == 0}


def _training_setup(
    iterator: Any, optimizers: Sequence[torch.optim.Optimizer], options: Any, distributed_option: Any, **_: Any
) -> TrainingSetup:
    """Build the setup from the arguments of ``train_one_epoch``."""
    planned = len(iterator) * options.max_epoch if hasattr(iterator, "__len__") else None
    first = distributed_option.dist_rank in (None, 0)
    return TrainingSetup(optimizers, planned, Path(options.output_dir) if first else None)
