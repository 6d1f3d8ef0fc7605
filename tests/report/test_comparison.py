"""The table of methods x sizes, from files alone."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_todm.errors import UserError
from espnet_todm.report import comparison
from espnet_todm.report.comparison import comparison_table, read_training
from espnet_todm.report.plan import Method
from espnet_todm.util.files import read_json, write_json


def write_training(folder: Path, epochs: Sequence[tuple[float, int]]) -> None:
    """checkpoint.pth with a reporter that has seen epochs of so many seconds, which ended after so many updates."""
    reporter = Reporter()
    for number, (seconds, updates) in enumerate(epochs, 1):
        reporter.set_epoch(number)
        with reporter.observe("train") as sub_reporter:
            sub_reporter.next()
        reporter.stats[number]["train"].update(time=datetime.timedelta(seconds=seconds), total_count=updates)
    state = {"model": {}, "optimizers": [], "reporter": reporter.state_dict()}
    torch.save(state, folder / "checkpoint.pth")


EPOCHS = [(3600 + 6 * 60 + 14.5, 521), (45.5, 1042)]


def test_a_training_tells_its_updates_and_hours(tmp_path: Path) -> None:
    write_training(tmp_path, EPOCHS)
    training = read_training(tmp_path)
    assert training.updates == 1042
    assert training.hours == pytest.approx((3600 + 6 * 60 + 14.5 + 45.5) / 3600)


def test_a_training_without_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pth: no such"):
        read_training(tmp_path)
    write_training(tmp_path, [])
    with pytest.raises(UserError, match=r"checkpoint\.pth: tells of no epoch"):
        read_training(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"checkpoint\.pth: tells of no epoch"):
        read_training(tmp_path)


def test_rows_hold_what_was_measured_and_blanks_elsewhere(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "model_steps", lambda experiment, updates: 1.5 * updates)
    write_training(scored, EPOCHS)
    card = scored / "subnets" / "small" / "card.json"
    content = read_json(card)
    content["cost"]["encoder_shares"] = {"params": 0.305, "flops": 0.4}
    write_json(card, content)
    method = Method("ours", {"encoder_conf": {"sizes": {"small": 0.31}}}, ("full", "small", "uncosted"))
    header, _, full, small, uncosted = comparison_table([(method, scored)]).splitlines()
    assert header.startswith("|size|method|WER dev [95%]|WER test_clean [95%]|params (M)|")
    assert full.startswith("|full|ours|") and full.endswith("|4.000|0.200||1042|1563|1.12|")
    assert small.startswith("|small|ours|") and small.endswith("|1.250|0.050|-0.50|1042|1563|1.12|")
    assert uncosted.endswith("|||||1042|1563|1.12|")
