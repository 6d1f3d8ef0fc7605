"""Training by several CPU processes: it trains, and one failing rank ends all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.trainers.cpu_processes import train
from tests.tiny_training import arguments, python, write_data


@pytest.mark.recipe
def test_two_processes_share_the_batches(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    options = arguments(data, tmp_path / "exp", "--max_epoch", "2")
    done = python(["-m", "espnet_todm.bin.asr_train_cpu", "--processes", "2", "--", *options])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("2epoch results") == 1  # the second rank keeps quiet
    state = torch.load(tmp_path / "exp/2epoch.pth", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.recipe
def test_a_failing_rank_ends_all_and_says_why(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    options = arguments(data, tmp_path / "exp", "--encoder", "todm_conformr")
    begin = time.monotonic()
    done = python(["-m", "espnet_todm.bin.asr_train_cpu", "--processes", "2", "--", *options])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "todm_conformr" in done.stderr and done.stderr.splitlines()[-1].startswith("error: training ended")
    assert time.monotonic() - begin < 300  # nobody waits for a rank that is gone


def test_no_process_is_refused() -> None:
    with pytest.raises(UserError, match="processes: 0"):
        train([], 0)
