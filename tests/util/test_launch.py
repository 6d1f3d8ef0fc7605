"""launch: order, logs, failures in one line, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.util.launch import JobError, launch, parse_options

ROOT = Path(__file__).resolve().parents[2]


def square(number: int) -> int:
    print(f"squaring {number}")
    return number * number


def fail_at_two(number: int) -> int:
    if number == 2:
        raise ValueError("two\nis not\nallowed")
    return number


def fail_or_sleep(folder: str) -> None:
    if folder == "fail":
        time.sleep(1.0)
        raise UserError("key: 1, but 2 is needed")
    Path(folder, "begun").touch()
    time.sleep(120)
    Path(folder, "ended").touch()


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads(number: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(("launcher", "jobs"), [("local", 1), ("local", 3), ("submitit-local", 2)])
def test_results_come_in_the_order_of_the_arguments(
    tmp_path: Path, launcher: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    numbers = [5, 3, 4, 1, 2]
    assert launch(square, numbers, jobs=jobs, launcher=launcher, logs=tmp_path) == [25, 9, 16, 1, 4]


@pytest.mark.parametrize(("launcher", "jobs"), [("local", 1), ("local", 2), ("submitit-local", 2)])
def test_failure_is_one_line_that_names_the_log(
    tmp_path: Path, launcher: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(JobError, match=r"odd job: job . of . failed: ValueError: allowed") as caught:
        launch(fail_at_two, [0, 1, 2, 3], jobs=jobs, launcher=launcher, logs=tmp_path, name="odd job")
    message = str(caught.value)
    assert "\n" not in message
    log = Path(message.rsplit("(log: ", 1)[1][:-1])
    assert log.parent == tmp_path
    assert "fail_at_two" in log.read_text()  # the traceback


def test_output_goes_to_one_log_for_each_argument(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch(square, [7, 8], jobs=2, logs=tmp_path, name="squares of/numbers")
    assert (tmp_path / "squares_of_numbers.1.log").read_text() == "squaring 7\n"
    assert (tmp_path / "squares_of_numbers.2.log").read_text() == "squaring 8\n"
    assert "squaring" not in capfd.readouterr().out


def test_first_failure_stops_the_others(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="job 2 of 2 failed: key: 1, but 2 is needed"):
        launch(fail_or_sleep, [str(tmp_path), "fail"], jobs=2, logs=tmp_path)
    assert (tmp_path / "begun").exists()
    assert not (tmp_path / "ended").exists()


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="ended by SIGKILL"):
        launch(die, [1, 2], jobs=2, logs=tmp_path)


def test_workers_leave_when_the_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from espnet_todm.util.launch import launch\n"
        "from tests.util.test_launch import fail_or_sleep\n"
        "if __name__ == '__main__':\n"
        f"    launch(fail_or_sleep, [{str(tmp_path)!r}] * 2, jobs=2, logs={str(tmp_path)!r})\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    _until(lambda: (tmp_path / "begun").exists())
    children = _children(parent.pid)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    _until(lambda: not any(_alive(child) for child in children))


def test_workers_use_one_thread_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(threads, [1, 2], jobs=2, logs=tmp_path) == ["1", "1"]
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch(threads, [1, 2], jobs=2, logs=tmp_path) == ["3", "3"]


def test_nothing_to_do(tmp_path: Path) -> None:
    assert launch(square, [], jobs=4, logs=tmp_path) == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"jobs": 0}, "jobs: 0 is not allowed, it must be a whole number >= 1"),
        ({"launcher": "pbs"}, "launcher: 'pbs' is unknown; allowed: local, slurm, submitit-local"),
        ({"launcher": "slurm"}, "launcher slurm"),  # there is no Slurm here
        ({"launcher": "submitit-local", "options": {"no_such": 1}}, "no_such"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tmp_path: Path, how: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        launch(square, [1, 2], logs=tmp_path, **how)
    assert "\n" not in str(caught.value)


def test_options_are_parsed() -> None:
    assert parse_options("slurm_partition=long, timeout_min=600") == {"slurm_partition": "long", "timeout_min": 600}
    assert parse_options("") == {}
    with pytest.raises(UserError, match="'long', but key=value"):
        parse_options("slurm_partition=x,long")


def _until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
