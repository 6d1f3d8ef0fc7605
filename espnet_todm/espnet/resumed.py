"""A resumed run with another learning rate, or other options of its optimizer or schedule.

ESPnet restores the state of both, and with it the options of the run that wrote the checkpoint: a changed configuration is
silently ignored, or breaks the next step. Here the configuration holds: the optimizer keeps its moments, and the schedule
stands where it would stand after as many steps. Another kind of optimizer or schedule has no use for the state: refused.
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
    """ESPnet's, and what the optimizer and its schedule are, and which parts are not trained."""

    freeze_param: Sequence[str]
    optim: str
    optim_conf: dict[str, Any]
    scheduler: Optional[str]
    scheduler_conf: dict[str, Any]


def configured(options: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the options: kinds and options of optimizer and schedule."""
    names = [name for kind in KINDS for name in (kind, f"{kind}_conf")]
    return {name: copy.deepcopy(getattr(options, name, None)) for name in names}


@contextmanager
def configuration_holds(
    checkpoint: Any, reporter: Any, optimizers: Sequence[Optimizer], schedulers: Sequence[Any], **_: Any
) -> Iterator[None]:
    """Around ESPnet's ``resume``, with its arguments. The reporter knows what is configured now, and, when it is loaded,
    what was. Tells each change in one line. Raises UserError for what cannot go on from the checkpoint's state."""
    fresh = [_Fresh.of(optimizer, schedule) for optimizer, schedule in zip(optimizers, schedulers)]
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        _check_kinds(reporter, checkpoint)  # says it better
        if isinstance(error, UserError) or not reporter.get_epoch():  # before ESPnet came to the optimizer
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
    """Raises UserError when the optimizer or the schedule is of another kind than the checkpoint's."""
    for kind, before, now in _pairs(reporter, KINDS):
        if before != now:
            raise UserError(
                f"{kind}: {now!r}, but {checkpoint} was trained with {before!r}, whose state is another;"
                f" {_way_out(checkpoint)}"
            )


def _changed(reporter: Any) -> list[tuple[str, Any, Any]]:
    """(option, value before, value now) of those that differ."""
    return [
        (f"{name}.{key}", (before or {}).get(key, "the default"), (now or {}).get(key, "the default"))
        for name, before, now in _pairs(reporter, [f"{kind}_conf" for kind in KINDS])
        for key in {**(before or {}), **(now or {})}
        if (before or {}).get(key) != (now or {}).get(key)
    ]


def _pairs(reporter: Any, names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """(name, value before, value now); nothing where the checkpoint does not tell, as that of stock ESPnet."""
    before, now = getattr(reporter, "configured_before", {}), getattr(reporter, "configured", {})
    return [(name, before[name], now[name]) for name in names if name in before and name in now]


@dataclass(frozen=True)
class _Fresh:
    """An optimizer's groups and its schedule as the configuration makes them for a new run."""

    groups: list[dict[str, Any]]
    schedule: Optional[Mapping[str, Any]]

    @classmethod
    def of(cls, optimizer: Optimizer, schedule: Any) -> _Fresh:
        groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        return cls(copy.deepcopy(groups), None if schedule is None else copy.deepcopy(schedule.state_dict()))

    def check(self, loaded: Optimizer, checkpoint: Any) -> None:
        """Raises UserError when the loaded state lacks an option that this kind of optimizer needs."""
        for group, new in zip(loaded.param_groups, self.groups):
            lacking = sorted((new.keys() & loaded.defaults.keys()) - group.keys())
            if lacking:
                raise UserError(
                    f"{checkpoint}: its optimizer's state has no {lacking[0]!r}, which {type(loaded).__name__} needs;"
                    f" {_way_out(checkpoint)}"
                )

    def go_on(self, optimizer: Optimizer, schedule: Any, keys: Collection[str]) -> None:
        """Give the loaded optimizer its configured values of ``keys`` and its rates, and the schedule its options at the
        step where it stands."""
        for group, start in zip(optimizer.param_groups, self.groups):
            noted_by_schedule = start.keys() - optimizer.defaults.keys()
            for key in start.keys() & {*keys, "lr", *noted_by_schedule}:
                group[key] = copy.deepcopy(start[key])
        if schedule is None or self.schedule is None:
            return
        if isinstance(schedule, AbsValEpochStepScheduler):  # its steps need values; it keeps what it knows of them
            own = {key: self.schedule[key] for key in ("base_lrs", *_OF_PLATEAU) if key in self.schedule}
            schedule.load_state_dict({**schedule.state_dict(), **copy.deepcopy(own)})
            return
        done = schedule.last_epoch
        schedule.load_state_dict(copy.deepcopy(dict(self.schedule)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the optimizer's steps in between
            try:
                for _ in range(done):
                    schedule.step()
            except ValueError as error:
                raise UserError(
                    f"scheduler_conf: the checkpoint has {done} steps: too many ({one_line(error)})"
                ) from None


# Options of schedules by validation values; what they have seen is not among them.
_OF_PLATEAU = (
    *("warmup_steps", "lr_scale", "factor", "min_lrs", "patience", "cooldown", "mode", "threshold"),
    *("threshold_mode", "mode_worse", "eps"),
)
