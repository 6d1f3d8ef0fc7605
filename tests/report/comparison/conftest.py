"""Experiments of a plan as trainings leave them, from files alone."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_todm.models.subnet_trainer import SizeUpdates
from espnet_todm.report.comparison import training
from espnet_todm.report.comparison.plan import Method
from espnet_todm.scoring.scores import UNITS, Score, write_score
from tests.cards import write_card

EPOCHS = [(3600 + 6 * 60 + 14.5, 521), (45.5, 1042)]
PARAMS = {"full": 4e6, "small": 1.25e6}
UTTERANCES = 40
WORDS = 10


def write_training(folder: Path, epochs: Sequence[tuple[float, int]] = EPOCHS) -> None:
    """checkpoint.pth with a reporter that has seen epochs of so many seconds, which ended after so many updates."""
    reporter = Reporter()
    for number, (seconds, updates) in enumerate(epochs, 1):
        reporter.set_epoch(number)
        with reporter.observe("train") as sub_reporter:
            sub_reporter.next()
        reporter.stats[number]["train"].update(time=datetime.timedelta(seconds=seconds), total_count=updates)
    state = {"model": {}, "optimizers": [], "reporter": reporter.state_dict()}
    torch.save(state, folder / "checkpoint.pth")


def write_rates(folder: Path, rates: dict[str, float], split: str = "test", utterances: int = UTTERANCES) -> Path:
    """Scores of sizes with these word error rates in percent, cards, and a training."""
    for size, rate in rates.items():
        total = round(utterances * WORDS * rate / 100)
        errors = np.random.default_rng(len(size)).multinomial(total, [1 / utterances] * utterances)
        rows = np.stack([WORDS - errors, errors, 0 * errors, 0 * errors], axis=1)
        names = tuple(f"utterance{number}" for number in range(utterances))
        write_score(
            folder / "decode" / split / size / "score.json", Score(split, size, names, dict.fromkeys(UNITS, rows))
        )
        cost = {"params": PARAMS[size], "flops_per_second": 50 * PARAMS[size]}
        write_card(folder / "subnets" / size, size, cost=cost)
    write_training(folder)
    return folder


def a_method(
    label: str,
    seed: Optional[int] = None,
    length: int = 1,
    sizes: tuple[str, ...] = ("full", "small"),
    conf: Optional[dict[str, Any]] = None,
    **more: Any,
) -> Method:
    config = {"encoder_conf": {"sizes": {"small": 0.3}, **(conf or {})}}
    return Method(f"{label} {length} {seed}", config, sizes, label, seed, length, **more)


@pytest.fixture(autouse=True)
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded: 1.5 model-steps for each update, small in half of them and in 20 of a first stage."""

    def replay(experiment: Path, updates: int) -> tuple[float, dict[str, SizeUpdates]]:
        return 1.5 * updates, {"full": SizeUpdates(updates), "small": SizeUpdates(updates // 2, 20)}

    monkeypatch.setattr(training, "replay", replay)
