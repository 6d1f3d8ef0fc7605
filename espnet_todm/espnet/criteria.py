"""Check the criteria of best models, early stopping and schedulers against the statistics that the training reports.

ESPnet ignores a criterion that is not reported: it keeps no best model, averages none, and removes each epoch's model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from espnet2.schedulers.abs_scheduler import AbsValEpochStepScheduler

from espnet_todm.errors import UserError
from espnet_todm.models.reports import reported
from espnet_todm.models.todm import TodmModel

# ESPnet's default for all models. Not a user's choice, so it may name an accuracy that the model does not report.
DEFAULT_BEST = (("train", "loss", "min"), ("valid", "loss", "min"), ("train", "acc", "max"), ("valid", "acc", "max"))
MODES = ("min", "max")


def check_criteria(model: TodmModel, options: Any, schedules: Iterable[type]) -> None:
    """Raises UserError, in one line, if a criterion of best models, early stopping or a scheduler is not reported.

    options: ESPnet's training options. schedules: classes of the schedulers in use.
    """
    names, best = reported(model), options.best_model_criterion
    if not isinstance(best, (list, tuple)) or not best:
        raise UserError(f"best_model_criterion: {best!r} must be a list such as [[valid, loss, min]]")
    in_use = list(_in_use(options, schedules))
    if all(isinstance(criterion, (list, tuple)) for criterion in best) and tuple(map(tuple, best)) == DEFAULT_BEST:
        in_use = in_use[len(best) :]
    wrong = [f"{option}: {_written(given)}" for option, given in in_use if not _is_reported(option, given, names)]
    odd = [
        f"{option}: {_written(given)}" for option, given in in_use if not wrong and given[2:] and given[2] not in MODES
    ]
    if odd:
        raise UserError(f"{'; '.join(odd)}: the last word must be {' or '.join(MODES)}")
    if wrong:
        told = "; ".join(f"{phase}: {', '.join(known)}" for phase, known in names.items())
        raise UserError(f"{'; '.join(wrong)}: no such value is reported by this training; there are {told}")


def _in_use(options: Any, schedules: Iterable[type]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield (option, [phase, name, mode]) for all criteria in use. Those of schedulers have no mode."""
    for criterion in options.best_model_criterion:
        yield "best_model_criterion", criterion
    if options.patience is not None:
        yield "early_stopping_criterion", options.early_stopping_criterion
    if any(issubclass(schedule, AbsValEpochStepScheduler) for schedule in schedules):
        yield "val_scheduler_criterion", options.val_scheduler_criterion


def _is_reported(option: str, given: Any, names: Mapping[str, Sequence[str]]) -> bool:
    if not isinstance(given, (list, tuple)) or len(given) != (2 if option.startswith("val_scheduler") else 3):
        return False
    phase, key = given[:2]
    return key in names.get(phase, ())


def _written(given: Any) -> str:
    """The value in YAML syntax."""
    return f"[{', '.join(map(str, given))}]" if isinstance(given, (list, tuple)) else repr(given)
