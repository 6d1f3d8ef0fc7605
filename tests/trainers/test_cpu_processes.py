"""Training by several CPU processes: it trains, and one failing rank ends all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.trainers.cpu_processes import train
from espnet_todm.util.stage_marker import exclusive
from tests.tiny_training import arguments, python, write_data
from tests.util.test_lifetime import ROOT, gone


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


RUN_SH = """
export ESPNET_TODM_PARENT="$$@$(uname -n)"
python=$1; shift
"$python" -m espnet_todm.bin.asr_train_cpu "$@" || exit
"""


@contextlib.contextmanager
def _training(output: Path, data: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A training of two ranks that would take hours, as soon as it has written an epoch; its output goes to a file."""
    options = ["--processes", "2", "--", *arguments(data, output, "--max_epoch", "100000", "--num_workers", "1")]
    with output.with_suffix(".log").open("w") as log:
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        started = subprocess.Popen([*before, *options], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)
    try:
        end = time.monotonic() + 600
        while not (output / "checkpoint.pth").exists():
            if time.monotonic() > end:  # its log then says where each process stands
                _signal([started.pid, *_family(started.pid)], signal.SIGABRT)
                started.wait(60)
            assert started.poll() is None, output.with_suffix(".log").read_text()[-20000:]
            time.sleep(0.1)
        yield started
    finally:
        _signal([started.pid, *_family(started.pid)], signal.SIGKILL)
        started.wait()


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _family(pid: int) -> list[int]:
    """The processes below one, by /proc."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    children = below.get(pid, [])
    return [*children, *(one for child in children for one in _family(child))]


def _take(folder: Path, seconds: float = 10) -> None:
    """Hold the folder for a moment, as soon as it is free. A loader forked after the family was listed, or a process whose
    first thread has ended before its others, holds it a little longer."""
    end = time.monotonic() + seconds
    while True:
        try:
            with exclusive(folder):
                return
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _is_rank(pid: int, rank: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[-3:-1] == ["--dist_rank", str(rank)]


@pytest.mark.recipe
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_trains_on_when_the_recipe_is_killed(tmp_path: Path) -> None:
    """Its ranks and their data loaders end, and the folder is free for the next run."""
    output, data = tmp_path / "exp", write_data(tmp_path / "data")
    with _training(output, data, "bash", "-c", RUN_SH, "run.sh", sys.executable) as recipe:
        with pytest.raises(UserError, match=r"exp: another process is writing it \(pid \d+ on "), exclusive(output):
            pass
        family = _family(recipe.pid)
        assert len(family) >= 3  # the command, and two ranks
        recipe.kill()
        recipe.wait()
        assert all(gone(pid) for pid in family)
        _take(output)


@pytest.mark.recipe
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_rank_is_one_line(tmp_path: Path) -> None:
    output, data = tmp_path / "exp", write_data(tmp_path / "data")
    with _training(output, data, sys.executable, "-m", "espnet_todm.bin.asr_train_cpu") as command:
        # Its data loader, which has the same command line, comes later.
        rank = next(pid for pid in _family(command.pid) if _is_rank(pid, 1))
        os.kill(rank, signal.SIGKILL)
        assert command.wait(60) == 1
    told = output.with_suffix(".log").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "error: training ended: its process 1 was ended by SIGKILL (out of memory?)"


def test_no_process_is_refused() -> None:
    with pytest.raises(UserError, match="processes: 0"):
        train([], 0)
