"""Processes end with the one that started them, however that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_todm.util.lifetime import PARENT, as_parent

ROOT = Path(__file__).parents[2]
STARTER = """
import os, signal, subprocess, sys, time
from espnet_todm.util.lifetime import as_parent
child = subprocess.Popen([*sys.argv[2:]], env={**os.environ, **as_parent()})
time.sleep(100)
"""
# Writes its pid, and then again and again the time, as a training writes checkpoints.
CHILD = """
import os, sys, time
from espnet_todm.util import lifetime
if sys.argv[2] == "watched":
    lifetime._LIBC = None
lifetime.end_with_starter()
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
time.sleep(100)
"""
FORKS = """
import os, sys, time
from espnet_todm.util.lifetime import end_forks_with_this
end_forks_with_this()
if os.fork() == 0:
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
time.sleep(100)
"""
PYTHON = [sys.executable, "-c"]


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for(path: Path, seconds: float = 60) -> str:
    """What a file holds as soon as it holds something."""
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)
    return path.read_text()


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within so many seconds. One that nobody has waited for yet has ended, too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", ["by the system", "watched"])
@pytest.mark.parametrize("between", [[], ["sh", "-c", '"$@"; true', "sh"]], ids=["child", "grandchild"])
def test_a_command_ends_with_the_one_that_started_it(tmp_path: Path, how: str, between: list[str]) -> None:
    starter = _start([*PYTHON, STARTER, "-", *between, *PYTHON, CHILD, str(tmp_path / "pid"), how])
    pid = int(wait_for(tmp_path / "pid"))
    assert not gone(pid, 0.5)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert gone(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does it on Linux")
def test_a_fork_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    starter = _start([*PYTHON, FORKS, str(tmp_path / "pid")])
    pid = int(wait_for(tmp_path / "pid"))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert gone(pid)


@pytest.mark.parametrize(
    "parent", [None, "", "nonsense", f"{os.getpid()}@elsewhere"], ids=["none", "empty", "nonsense", "elsewhere"]
)
def test_a_command_of_a_user_lives_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    if parent is not None:
        monkeypatch.setenv(PARENT, parent)
    shell = _start(["sh", "-c", '"$@" & exit 0', "sh", *PYTHON, CHILD, str(tmp_path / "pid"), "by the system"])
    assert shell.wait() == 0
    pid = int(wait_for(tmp_path / "pid"))
    try:
        assert not gone(pid, 2)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_one_that_comes_too_late_leaves_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    late = {PARENT: as_parent()[PARENT].replace(str(os.getpid()), str(ended.pid), 1)}
    child = subprocess.run(
        [*PYTHON, CHILD, str(tmp_path / "pid"), "by the system"],
        env={**os.environ, **late},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 1 and not (tmp_path / "pid").exists()
    assert child.stderr == (
        f"error: ESPNET_TODM_PARENT: process {ended.pid}, with which this command was to end, is gone; unset"
        " ESPNET_TODM_PARENT to run it alone\n"
    )
