"""Resume a run with another learning rate, or with other options of its optimizer or scheduler.

ESPnet restores the state of both, including the options of the earlier run. It silently ignores a changed configuration, or
fails in the next step. With this module the new configuration applies: the optimizer keeps its moments, and the scheduler
is set to the same number of steps. A change of the class of optimizer or scheduler is an error, since the state is invalid.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from espnet2.schedulers.abs_scheduler import AbsValEpochStepScheduler
from espnet2.train.trainer import TrainerOptions
from torch.optim import Optimizer

from espnet_todm.errors import UserError, one_line

KINDS = ("optim", "scheduler")


@dataclass
class TodmTrainerOptions(TrainerOptions):
    """ESPnet's trainer options, and the options of the optimizer, the scheduler, frozen parameters and rounding."""

    freeze_param: Sequence[str]
    optim: str
    optim_conf: dict[str, Any]
    scheduler: Optional[str]
    scheduler_conf: dict[str, Any]
    fake_quantization: Optional[str]


def configured(options: Any) -> dict[str, Any]:
    """The options that a checkpoint stores: names and options of optimizer and scheduler."""
    names = [name for kind in KINDS for name in (kind, f"{kind}_conf")]
    return {name: copy.deepcopy(getattr(options, name, None)) for name in names}


@contextmanager
def configuration_holds(
    checkpoint: Any, reporter: Any, optimizers: Sequence[Optimizer], schedulers: Sequence[Any], **_: Any
) -> Iterator[None]:
    """Context around ESPnet's ``resume``, with the same arguments. The reporter has the present options and, once loaded,
    those of the checkpoint. Logs each change in one line. Raises UserError if the checkpoint's state cannot be used."""
    fresh = [_Fresh.of(optimizer, schedule) for optimizer, schedule in zip(optimizers, schedulers)]
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        _check_kinds(reporter, checkpoint)  # its message is clearer
        if isinstance(error, UserError) or not reporter.get_epoch():  # raised before ESPnet loaded the optimizer
            raise
        raise UserError(
            f"{checkpoint}: the state of its optimizer or schedule does not fit ({one_line(error)});"
            f" {_way_out(checkpoint)}"
        ) from None
    _check_kinds(reporter, checkpoint)
    for optimizer, start in zip(optimizers, fresh):
        start.check(optimizer, checkpoint)
    changed = _changed(reporter)
    for name, before, now in changed:
        logging.warning("resumed with another %s: %s from now on, %s so far", name, now, before)
    if changed:
        keys = [name.partition(".")[2] for name, _, _ in changed if name.startswith("optim_conf.")]
        for optimizer, schedule, start in zip(optimizers, schedulers, fresh):
            start.go_on(optimizer, schedule, keys)


def _way_out(checkpoint: Any) -> str:
    latest = Path(checkpoint).parent / "latest.pth"
    return f"keep what it was trained with, or begin anew from its weights: --init_param {latest}, another --output_dir"


def _check_kinds(reporter: Any, checkpoint: Any) -> None:
    """Raises UserError if the class of the optimizer or the scheduler differs from the checkpoint's."""
    for kind, before, now in _pairs(reporter, KINDS):
        if before != now:
            raise UserError(
                f"{kind}: {now!r}, but {checkpoint} was trained with {before!r}, whose state is another;"
                f" {_way_out(checkpoint)}"
            )


def _changed(reporter: Any) -> list[tuple[str, Any, Any]]:
    """(option, value before, value now) of all options that differ."""
    return [
        (f"{name}.{key}", (before or {}).get(key, "the default"), (now or {}).get(key, "the default"))
        for name, before, now in _pairs(reporter, [f"{kind}_conf" for kind in KINDS])
        for key in {**(before or {}), **(now or {})}
        if (before or {}).get(key) != (now or {}).get(key)
    ]


def _pairs(reporter: Any, names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """(name, value before, value now). Empty for a checkpoint without these options, such as stock ESPnet's."""
    before, now = getattr(reporter, "configured_before", {}), getattr(reporter, "configured", {})
    return [(name, before[name], now[name]) for name in names if name in before and name in now]


@dataclass(frozen=True)
class _Fresh:
    """Parameter groups of an optimizer, and the scheduler's state, as in a new run with the present configuration."""

    groups: list[dict[str, Any]]
    schedule: Optional[Mapping[str, Any]]

    @classmethod
    def of(cls, optimizer: Optimizer, schedule: Any) -> _Fresh:
        groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        return cls(copy.deepcopy(groups), None if schedule is None else copy.deepcopy(schedule.state_dict()))

    def check(self, loaded: Optimizer, checkpoint: Any) -> None:
        """Raises UserError if the loaded state lacks an option that this optimizer needs."""
        for group, new in zip(loaded.param_groups, self.groups):
            lacking = sorted((new.keys() & loaded.defaults.keys()) - group.keys())
            if lacking:
                raise UserError(
                    f"{checkpoint}: its optimizer's state has no {lacking[0]!r}, which {type(loaded).__name__} needs;"
                    f" {_way_out(checkpoint)}"
                )

    def go_on(self, optimizer: Optimizer, schedule: Any, keys: Collection[str]) -> None:
        """Set the configured values of ``keys`` and the learning rates in the loaded optimizer. Set the scheduler's options
        and move it to its present step."""
        for group, start in zip(optimizer.param_groups, self.groups):
            noted_by_schedule = start.keys() - optimizer.defaults.keys()
            for key in start.keys() & {*keys, "lr", *noted_by_schedule}:
                group[key] = copy.deepcopy(start[key])
        if schedule is None or self.schedule is None:
            return
        if isinstance(schedule, AbsValEpochStepScheduler):  # its steps need validation values, so its history is kept
            own = {key: self.schedule[key] for key in ("base_lrs", *_OF_PLATEAU) if key in self.schedule}
            schedule.load_state_dict({**schedule.state_dict(), **copy.deepcopy(own)})
            return
        done = schedule.last_epoch
        schedule.load_state_dict(copy.deepcopy(dict(self.schedule)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about missing optimizer steps
            try:
                for _ in range(done):
                    schedule.step()
            except ValueError as error:
                raise UserError(
                    f"scheduler_conf: the checkpoint has {done} steps: too many ({one_line(error)})"
                ) from None


# Options, without the history, of schedulers that use validation values.
_OF_PLATEAU = (
    *("warmup_steps", "lr_scale", "factor", "min_lrs", "patience", "cooldown", "mode", "threshold"),
    *("threshold_mode", "mode_worse", "eps"),
)
