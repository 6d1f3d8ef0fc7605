"""Dry run: training steps of a configuration on random speech. It finds errors and reports the costs of the sizes."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any, Optional

import torch

from espnet_todm.bench.step_cost import random_batch
from espnet_todm.components import Cost
from espnet_todm.errors import UserError
from espnet_todm.espnet.criteria import check_criteria
from espnet_todm.espnet.parts import part_errors
from espnet_todm.espnet.task_options import check_training
from espnet_todm.models.batch import Batch
from espnet_todm.models.todm import TodmModel
from espnet_todm.util.checks import check_number
from espnet_todm.util.vocabulary import BLANK, SOS_EOS, UNKNOWN


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run: the cost of each size (full size first), and the loss, the learning rates before and after, and
    the seconds of the last step."""

    costs: dict[str, Cost]
    loss: float
    rates: tuple[float, float]
    seconds: float


def dry_run(options: argparse.Namespace, vocabulary: int, utterances: int = 2, seconds: float = 5.0) -> DryRun:
    """Build model, optimizer and scheduler as ESPnet does, and run one step of each phase of the training on the CPU.

    Args:
        options: output of :func:`espnet_todm.espnet.options.parse_training`. The token list is replaced by a generated one.
            Normalisation is left out, since it may need statistics.
        vocabulary: number of tokens, with the special ones.
        utterances, seconds: number of utterances in the batch, and the length of each in seconds.

    Raises:
        UserError: the configuration has no supernet, an argument or a training option is out of range, a criterion names
            a statistic that is not reported, or the loss or the gradient is not finite.
    """
    check_training(options)
    check_number("vocabulary", vocabulary, at_least=4, whole=True)
    check_number("utterances", utterances, at_least=1, whole=True)
    check_number("seconds", seconds, at_least=1)
    torch.manual_seed(options.seed)
    with part_errors(options):
        model, optimizer, schedule = build(options, vocabulary)
    model.train()
    batch = random_batch(vocabulary, options.input_size, utterances, seconds)
    trainer = model.subnet_trainer
    for step in [0] if trainer is None else trainer.walk_through(model):
        rate, start = optimizer.param_groups[0]["lr"], time.perf_counter()
        with part_errors(options, forward=True):
            loss = _step(model, batch, step, optimizer, options)
        if schedule is not None:
            schedule.step()
        seconds = time.perf_counter() - start
    table = model.component_table()
    costs = {name: table.cost(subnet) for name, subnet in model.encoder.sizes.items()}
    return DryRun(costs, loss, (rate, optimizer.param_groups[0]["lr"]), seconds)


def _step(
    model: TodmModel, batch: Batch, step: int, optimizer: torch.optim.Optimizer, options: argparse.Namespace
) -> float:
    """Run one update and return its loss. Raises UserError if the loss or the gradient is not finite."""
    optimizer.zero_grad()
    loss = model(batch.speech, batch.speech_lengths, batch.text, batch.text_lengths, step=step)[0].sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip, options.grad_clip_type)
    for name, value in (("loss", loss.item()), ("norm of the gradient", norm.item())):
        if not math.isfinite(value):
            raise UserError(f"{options.config}: the {name} of step {step} is {value}")
    optimizer.step()
    return loss.item()


def build(options: argparse.Namespace, vocabulary: int) -> tuple[TodmModel, torch.optim.Optimizer, Optional[Any]]:
    """Build the model, the optimizer, and the scheduler that runs after each update (None if there is none)."""
    from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
    from espnet2.tasks.abs_task import scheduler_classes
    from espnet2.tasks.asr import ASRTask

    tokens = [BLANK, UNKNOWN, *map(str, range(vocabulary - 3)), SOS_EOS]
    options = argparse.Namespace(**{**vars(options), "token_list": tokens, "normalize": None})
    model = ASRTask.build_model(options)
    if not isinstance(model, TodmModel):
        raise UserError(f"{options.config}: describes no supernet; it needs model: todm")
    (optimizer,) = ASRTask.build_optimizers(options, model)
    kind = scheduler_classes[options.scheduler.lower()] if options.scheduler is not None else None
    check_criteria(model, options, [kind] if kind is not None else [])
    if kind is None:
        return model, optimizer, None
    schedule = kind(optimizer, **options.scheduler_conf)
    return model, optimizer, schedule if isinstance(schedule, AbsBatchStepScheduler) else None
