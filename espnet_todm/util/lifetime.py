"""Processes that end with the one that started them, however that one ends: nobody goes on writing beside the next run.

A killed process cannot end its children. On Linux the system does it for them; elsewhere a thread of each child looks for
its parent now and then.

Which process a command ends with is in the environment: ``ESPNET_TODM_PARENT=<pid>@<host>``, set by a recipe's ``run.sh``
for its stages and by a training on the CPU for its ranks. A command that a user starts, perhaps in the background of a
terminal, has no such variable and lives on its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from functools import cache
from typing import NoReturn

PARENT = "ESPNET_TODM_PARENT"
_SECONDS_BETWEEN_LOOKS = 1.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def as_parent() -> dict[str, str]:
    """What the environment of commands says that are to end with this process."""
    return {PARENT: f"{os.getpid()}@{socket.gethostname()}"}


def end_with_starter() -> None:
    """End this process with the one that the environment names, if that is of this machine. Where that has ended already,
    this one says so and ends with status 1."""
    pid, _, host = os.environ.get(PARENT, "").partition("@")
    if not pid.isdecimal() or host != socket.gethostname():
        return
    if os.getppid() == int(pid):
        end_with(int(pid))
    elif not _is_there(int(pid)):
        told = f"error: {PARENT}: process {pid}, with which this command was to end, is gone; unset {PARENT} to run it alone"
        print(told, file=sys.stderr, flush=True)
        _leave()
    else:  # another program stands between the two
        _watch(int(pid))


def end_with_parent() -> None:
    """End this process, one that multiprocessing started, with its parent."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with(parent.pid)


def end_with(parent: int) -> None:
    """End this process with its parent, whose pid this is."""
    if not _signalled():
        _watch(parent)
    if os.getppid() != parent:  # gone before we asked
        _leave()


@cache
def end_forks_with_this() -> None:
    """What this process forks from now on, such as data loaders' workers, ends with it.

    Only what its main thread forks: the system takes the end of the forking thread for the parent's.
    """
    forking: dict[str, int] = {}

    def before() -> None:
        forking["parent"] = os.getpid() if threading.current_thread() is threading.main_thread() else 0

    def in_child() -> None:
        if forking["parent"] and _signalled() and os.getppid() != forking["parent"]:
            _leave()

    os.register_at_fork(before=before, after_in_child=in_child)


def _signalled() -> bool:
    """Ask the system to kill this process when its parent ends; False where it cannot."""
    prctl = getattr(_LIBC, "prctl", None)
    return prctl is not None and int(prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)) == 0


_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def _watch(pid: int) -> None:
    def look() -> None:
        while _is_there(pid) and os.getppid() != 1:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        _leave()

    threading.Thread(target=look, daemon=True).start()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _leave() -> NoReturn:
    os._exit(1)
