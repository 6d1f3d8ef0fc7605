"""One-line errors for external causes that end a training: a killed process, full memory, a full disk.

The libraries report these with long tracebacks that hide the cause.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from espnet_todm.errors import UserError, last_line, one_line

_LOST = "another process of this training ended or cannot be reached; what it printed says why"
# (pattern in a library's message, error line). Groups of the pattern fill the line.
FAULTS = (
    (r"process (\d+) terminated with signal (\w+)", "process {} of the training was ended by {} (out of memory?)"),
    (
        r"process (\d+) terminated with exit code (\d+)",
        "process {} of the training ended with exit status {}; see above",
    ),
    (
        r"DataLoader worker \(pid",
        "a data loader's worker was ended, perhaps because memory was short; try a smaller num_workers",
    ),
    (r"No space left on device", "No space left on device, where the training or its workers write"),
    (r"(?i)connection (?:closed|reset) by peer|connection refused|broken pipe", _LOST),
    (r"(?i)gloo/transport|ncclRemoteError|NCCL error|timed out .*waiting for|Socket Timeout", _LOST),
)
_IN_WORKER = "Original Traceback (most recent call last)"


@contextmanager
def faults_told() -> Iterator[None]:
    """Replaces two kinds of exceptions by a UserError: faults listed in FAULTS, and OSErrors and UserErrors of a data
    loader's worker, whose message is a traceback. Other exceptions pass."""
    try:
        yield
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        raise UserError(line) from error


def words(error: BaseException) -> str:
    """The message of an exception in one line, with its class where that is informative. For an exception in a data
    loader's worker, torch's message is the traceback. Its last line has the class and the message."""
    said = last_line(str(error), 1000)
    if _IN_WORKER in str(error) or (isinstance(error, (RuntimeError, ValueError)) and said):
        return said
    return f"{type(error).__name__} {said}".rstrip()


def _line(error: Exception) -> Optional[str]:
    text = str(error)
    if _IN_WORKER in text:
        if isinstance(error, UserError):
            return words(error).partition(": ")[2]
        return f"reading data: {words(error)}" if isinstance(error, OSError) else None
    known = (RuntimeError, ConnectionResetError)
    if not isinstance(error, known) and type(error).__module__ != "torch.multiprocessing.spawn":
        return None
    for pattern, line in FAULTS:
        found = re.search(pattern, text)
        if found is not None:
            told = line.format(*found.groups())
            return told if line is not _LOST else f"{told} ({one_line(error, 120)})"
    return None


@contextmanager
def told_by_rank() -> Iterator[None]:
    """In a rank started by multiprocessing, print a UserError as commands do and exit with status 1. This avoids the
    traceback of multiprocessing."""
    try:
        yield
    except UserError as error:
        if multiprocessing.parent_process() is None:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
