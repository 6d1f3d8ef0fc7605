"""The same training for a multiple of its updates.

All that counts updates or epochs is multiplied, so that the schedule keeps its shape:

- ``max_epoch`` and ``patience``; an epoch stays as long as it is, with or without ``num_iters_per_epoch``;
- in ``scheduler_conf``, ``subnet_trainer_conf`` and ``model_conf``: every whole number, or list of them, whose name ends
  with one of SUFFIXES: ``warmup_steps_list``, ``warmup_steps``, ``stage1_steps``, ``penalty_steps``, ``lr_batches``,
  ``lr_epochs`` and so on. The warm-ups of the learning rate, of the trainer and of a transducer's loss are among them;
- the step numbers in ``join``; values below 1 are shares of the run there;
- ``temperature_decay``, a factor per update, becomes its root.

Shares of the training (``stage1_share``), learning rates, the data and the batches stay. Rates of averages
(the 0.999 of an exponential moving average) stay too: they are lengths in updates, but not of the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet_todm.util.checks import is_number

SECTIONS = ("scheduler_conf", "subnet_trainer_conf", "model_conf")
SUFFIXES = ("_steps", "_steps_list", "_batches", "_epochs")
EPOCHS = ("max_epoch", "patience")
_OF_SCHEDULERS = ("step_size", "T_max", "milestones", "total_iters")  # torch's names for numbers of steps


def stretched(config: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """The configuration for ``factor`` times as many updates."""
    longer = {key: _times(value, factor) if key in EPOCHS else value for key, value in config.items()}
    return {key: _section(value, factor) if key in SECTIONS else value for key, value in longer.items()}


def _section(options: Any, factor: int) -> Any:
    if not isinstance(options, Mapping):
        return options
    result = {}
    for key, value in options.items():
        if str(key).endswith(SUFFIXES) or key in _OF_SCHEDULERS:
            result[key] = _times(value, factor)
        elif key == "join" and isinstance(value, Mapping):
            result[key] = {size: _later(start, factor) for size, start in value.items()}
        elif key == "temperature_decay" and is_number(value):
            result[key] = float(value) ** (1 / factor)
        else:
            result[key] = _section(value, factor)
    return result


def _later(start: Any, factor: int) -> Any:
    """A step number of ``join``, multiplied; a share of the run as it is. What is neither is refused by the training."""
    return start * factor if is_number(start) and start >= 1 else start


def _times(value: Any, factor: int) -> Any:
    if isinstance(value, list):
        return [_times(one, factor) for one in value]
    return value * factor if is_number(value) else value
