"""What a resumed run makes of an optimizer or a schedule that is configured otherwise than its checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from espnet2.schedulers.abs_scheduler import AbsValEpochStepScheduler
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.train.reporter import Reporter

from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.candidates import CandidateReporter
from espnet_todm.espnet.registry import register
from espnet_todm.espnet.trainer import TodmTrainer
from tests.tiny_training import arguments, write_config, write_data

WARMUP = ("warmuplr", {"warmup_steps": 4})
PIECEWISE = ("piecewiselinearwarmuplr", {"warmup_steps_list": [1, 30], "warmup_lr_list": [0.0, 0.1]})
STEPS = 7  # before the checkpoint


class Run:
    """A model of two weights with an optimizer and a schedule as ESPnet builds them."""

    def __init__(
        self, optim: str, optim_conf: dict[str, Any], scheduler: Optional[str], scheduler_conf: dict[str, Any]
    ) -> None:
        register()
        self.model = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.optimizer = optim_classes[optim](self.model.parameters(), **optim_conf)
        self.schedule = scheduler_classes[scheduler](self.optimizer, **scheduler_conf) if scheduler else None
        self.reporter = CandidateReporter(
            lambda: False,
            {"optim": optim, "optim_conf": optim_conf, "scheduler": scheduler, "scheduler_conf": scheduler_conf},
        )

    def train(self, steps: int) -> list[float]:
        """The learning rate of each step."""
        rates = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.tensor([[1.0, 2.0]])).square().sum().backward()
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            if isinstance(self.schedule, AbsValEpochStepScheduler):
                self.schedule.step(1.0)
            elif self.schedule is not None:
                self.schedule.step()
        return rates

    def save(self, path: Path) -> Path:
        schedule = None if self.schedule is None else self.schedule.state_dict()
        states = {"optimizers": [self.optimizer.state_dict()], "schedulers": [schedule], "scaler": None}
        torch.save({"model": self.model.state_dict(), "reporter": self.reporter.state_dict(), **states}, path)
        return path

    def resume(self, path: Path) -> None:
        parts = {"optimizers": [self.optimizer], "schedulers": [self.schedule], "scaler": None}
        TodmTrainer.resume(checkpoint=path, model=self.model, reporter=self.reporter, **parts)


@pytest.fixture
def resumed(tmp_path: Path):
    """How to get a run that was configured as the first and is resumed as the second says."""

    def make(before: tuple[Any, ...], now: tuple[Any, ...]) -> Run:
        first, second = Run(*before), Run(*now)
        first.train(STEPS)
        second.resume(first.save(tmp_path / "checkpoint.pth"))
        return second

    return make


@pytest.mark.parametrize(
    "schedule",
    [
        (None, {}),
        WARMUP,
        ("noamlr", {"model_size": 64, "warmup_steps": 5}),
        ("steplr", {"step_size": 2}),
        ("exponentiallr", {"gamma": 0.9}),
        ("cosineannealinglr", {"T_max": 20}),
        ("onecyclelr", {"max_lr": 0.1, "total_steps": 30}),
        ("cosineannealingwarmuprestarts", {"first_cycle_steps": 5, "warmup_steps": 2}),
        ("warmupsteplr", {"warmup_steps": 3, "steps_per_epoch": 2}),
        ("eden", {"lr_batches": 5}),
        PIECEWISE,
        ("reducelronplateau", {"patience": 1}),
    ],
    ids=lambda given: str(given[0]),
)
def test_an_unchanged_configuration_goes_on_as_if_nothing_had_been(resumed, caplog, schedule: tuple[Any, ...]) -> None:
    conf = ("adam", {"lr": 0.01}, *schedule)
    undisturbed = Run(*conf)
    undisturbed.train(STEPS)
    again = resumed(conf, conf)
    assert again.train(3) == undisturbed.train(3)
    assert torch.equal(again.model.weight, undisturbed.model.weight)
    assert not [record for record in caplog.records if "resumed with" in record.message]


@pytest.mark.parametrize(
    ("schedule", "other"),
    [
        ((None, {}), (None, {})),
        (WARMUP, WARMUP),
        (WARMUP, ("warmuplr", {"warmup_steps": 20})),
        (("steplr", {"step_size": 2}), ("steplr", {"step_size": 3, "gamma": 0.5})),
        (("exponentiallr", {"gamma": 0.9}), ("exponentiallr", {"gamma": 0.8})),
        (("cosineannealinglr", {"T_max": 20}), ("cosineannealinglr", {"T_max": 40})),
        (("onecyclelr", {"max_lr": 0.1, "total_steps": 30}), ("onecyclelr", {"max_lr": 0.2, "total_steps": 60})),
        (("eden", {"lr_batches": 5}), ("eden", {"lr_batches": 50})),
        (PIECEWISE, ("piecewiselinearwarmuplr", {"warmup_steps_list": [1, 90], "warmup_lr_list": [0.0, 0.1]})),
    ],
    ids=lambda given: str(given),
)
def test_a_schedule_stands_where_the_configuration_has_it_after_as_many_steps(
    resumed, schedule: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    other_from_the_start = Run("adam", {"lr": 0.02}, *other)
    other_from_the_start.train(STEPS)
    again = resumed(("adam", {"lr": 0.01}, *schedule), ("adam", {"lr": 0.02}, *other))
    assert again.optimizer.state[again.model.weight]["step"] == STEPS  # the moments are the checkpoint's
    assert again.train(3) == pytest.approx(other_from_the_start.train(3))


def test_each_change_is_told_and_holds(resumed, caplog) -> None:
    before = ("adam", {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-9}, *WARMUP)
    now = ("adam", {"lr": 0.005, "betas": [0.9, 0.999], "weight_decay": 0.1}, "warmuplr", {"warmup_steps": 2})
    again = resumed(before, now)
    told = [record.message for record in caplog.records if "resumed with" in record.message]
    assert told == [
        "resumed with another optim_conf.lr: 0.005 from now on, 0.01 so far",
        "resumed with another optim_conf.betas: [0.9, 0.999] from now on, [0.9, 0.98] so far",
        "resumed with another optim_conf.eps: the default from now on, 1e-09 so far",
        "resumed with another optim_conf.weight_decay: 0.1 from now on, the default so far",
        "resumed with another scheduler_conf.warmup_steps: 2 from now on, 4 so far",
    ]
    (group,) = again.optimizer.param_groups
    assert (list(group["betas"]), group["eps"], group["weight_decay"]) == ([0.9, 0.999], 1e-8, 0.1)


def test_a_plateau_keeps_what_it_saw(resumed) -> None:
    before = ("adam", {"lr": 0.01}, "reducelronplateau", {"patience": 4, "factor": 0.1})  # of 7 values alike 6 are bad
    again = resumed(before, ("adam", {"lr": 0.02}, "reducelronplateau", {"patience": 3, "factor": 0.5}))
    assert again.schedule.best == 1.0 and again.schedule.patience == 3
    assert again.train(4) == [0.02, 0.02, 0.02, 0.01]


def test_scaled_adams_record_of_norms_survives_another_rate(resumed) -> None:
    again = resumed(
        ("scaledadam", {"lr": 0.03, "clipping_scale": 2.0}, None, {}),
        ("scaledadam", {"lr": 0.04, "clipping_scale": 2.0}, None, {}),
    )
    assert again.optimizer.param_groups[0]["clipping_step"] == STEPS and again.train(1) == [0.04]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (("sgd", {"lr": 0.1}, None, {}), ("adam", {"lr": 0.1}, None, {}), ["optim: 'adam'", "'sgd'"]),
        (("adam", {"lr": 0.1}, None, {}), ("scaledadam", {"lr": 0.1}, None, {}), ["optim: 'scaledadam'", "'adam'"]),
        (("adam", {"lr": 0.1}, None, {}), ("adam", {"lr": 0.1}, *WARMUP), ["scheduler: 'warmuplr'", "None"]),
        (("adam", {"lr": 0.1}, *WARMUP), ("adam", {"lr": 0.1}, "steplr", {"step_size": 1}), ["'steplr'", "'warmuplr'"]),
        (
            ("adam", {"lr": 0.1}, "onecyclelr", {"max_lr": 0.1, "total_steps": 30}),
            ("adam", {"lr": 0.1}, "onecyclelr", {"max_lr": 0.1, "total_steps": 5}),
            ["scheduler_conf", "7 steps"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_in_one_line(resumed, before: Any, now: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        resumed(before, now)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_checkpoint_of_stock_espnet_is_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    first = Run("sgd", {"lr": 0.1}, None, {})
    first.reporter = Reporter(epoch=1)
    first.train(1)
    path = first.save(tmp_path / "checkpoint.pth")
    again = Run("sgd", {"lr": 0.1}, None, {})
    again.resume(path)
    with pytest.raises(UserError, match=r"has no 'betas', which Adam needs; .*--init_param .*latest\.pth"):
        Run("adam", {"lr": 0.1}, None, {}).resume(path)
    grouped = Run("sgd", {"lr": 0.1}, None, {})
    grouped.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(UserError, match=r"does not fit .*parameter groups"):
        grouped.resume(path)


def test_a_real_run_is_resumed_with_another_rate(tmp_path: Path, caplog) -> None:
    data, output = write_data(tmp_path / "data"), tmp_path / "exp"
    main(arguments(data, output, "--max_epoch", "1"))
    with pytest.raises(UserError, match=r"scheduler: 'steplr', but .*checkpoint\.pth was trained with 'warmuplr'"):
        write_config(data / "config.yaml", scheduler="steplr", scheduler_conf={"step_size": 1})
        main(arguments(data, output))
    write_config(data / "config.yaml")
    main(arguments(data, output, "--max_epoch", "2", "--optim_conf", "lr=0.002"))
    assert "resumed with another optim_conf.lr: 0.002 from now on, 0.01 so far" in caplog.text
    states = torch.load(output / "checkpoint.pth", weights_only=False)
    assert states["reporter"]["configured"]["optim_conf"] == {"lr": 0.002}
    expected = 0.002 * 5**0.5 * 7**-0.5  # warmuplr with 5 steps of warm-up, after 6 steps
    assert states["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(expected)
