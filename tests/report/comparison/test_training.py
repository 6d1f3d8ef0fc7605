"""What a training took, from its own record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.training import read_record, read_training
from tests.report.comparison.conftest import write_training


def test_a_training_tells_its_updates_and_hours(tmp_path: Path) -> None:
    write_training(tmp_path)
    updates, hours = read_record(tmp_path)
    assert updates == 1042
    assert hours == pytest.approx((3600 + 6 * 60 + 14.5 + 45.5) / 3600)
    assert read_training(tmp_path).model_steps == 1563


def test_a_training_without_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pth: no such"):
        read_record(tmp_path)
    write_training(tmp_path, [])
    with pytest.raises(UserError, match=r"checkpoint\.pth: tells of no epoch"):
        read_record(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"checkpoint\.pth: tells of no epoch"):
        read_record(tmp_path)
