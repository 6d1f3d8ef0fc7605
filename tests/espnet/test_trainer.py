"""What this package's trainer gives a supernet with each batch: the step's number and the scale of losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_todm.espnet.trainer import TodmTrainer
from espnet_todm.models.todm import TodmModel
from tests.tiny_model import trained_by
from tests.trainers.epochs import batches, train_epoch, trainer_options


def validate(model: TodmModel, iterator: Any) -> dict[str, list[float]]:
    """The statistics of each batch that a validation reports."""
    with Reporter().observe("valid") as part:
        TodmTrainer.validate_one_epoch(
            model=model,
            iterator=iterator,
            reporter=part,
            options=trainer_options(),
            distributed_option=DistributedOption(),
        )
        return {name: [value.value for value in part.stats[name]] for name in part.stats}


def test_training_is_told_its_steps_and_validation_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, Any]] = []
    forward = TodmModel.forward

    def recorded(self: TodmModel, *args: Any, **kwargs: Any) -> Any:
        told.append((self.training, kwargs.get("step")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(TodmModel, "forward", recorded)
    model = trained_by()
    train_epoch(model, batches(False, False, False), torch.optim.SGD(model.parameters(), lr=0.01))
    validate(model, batches(False))
    assert told == [(True, 0), (True, 1), (True, 2), (False, 2)]


def test_the_trainer_may_change_the_model_before_a_step_and_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = trained_by(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monkeypatch.setattr(model.subnet_trainer, "prepare", lambda *given: seen.append(given))
    train_epoch(model, batches(False, False), optimizer, max_epoch=7)
    assert [(of is model, step) for of, step, _ in seen] == [(True, 0), (True, 1)]
    assert seen[0][2].optimizers == [optimizer] and seen[0][2].planned_steps == 14


def test_error_rates_may_be_those_of_some_batches() -> None:
    model = trained_by()
    every = validate(model, batches(False, False, False))
    model.error_rates_every = 2
    some = validate(model, batches(False, False, False))
    assert some.keys() == every.keys() and some["loss"] == every["loss"]
    for name in ("cer_ctc", "cer_ctc_small"):
        first, second, third = some[name]
        assert math.isnan(second) and [first, third] == every[name][::2]


def test_ranks_of_a_supernet_leave_unreached_parameters_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DistributedDataParallel then gives no zeros to what no rank reached in a step."""
    given: list[bool] = []
    monkeypatch.setattr(Trainer, "run", classmethod(lambda _, **kwargs: given.append(_unused(**kwargs))))
    for model in (trained_by(), torch.nn.Linear(1, 1)):
        TodmTrainer.run(
            model=model,
            optimizers=[],
            schedulers=[],
            train_iter_factory=None,
            valid_iter_factory=None,
            plot_attention_iter_factory=None,
            trainer_options=trainer_options(output_dir=str(tmp_path)),
            distributed_option=DistributedOption(),
        )
    assert given == [True, False]


def _unused(trainer_options: Any, **_: Any) -> bool:
    return bool(trainer_options.unused_parameters)
