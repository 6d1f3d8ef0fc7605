"""What makes recipe stages repeatable: a marker that says with which options an output was made, and one writer at a
time.

A stage's output is a folder with a ``.completed`` marker in it. The marker records the options and the fingerprints
of the inputs. A second run with the same ones has nothing to do; with other ones, or after a kill, it makes the
folder anew.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, make_folder, to_json, write_json

MARKER = ".completed"
_TIME = "%Y-%m-%d %H:%M:%S"


def is_complete(folder: PathLike, options: dict[str, Any]) -> bool:
    """Whether ``folder`` was completed with these ``options`` (a JSON-ready dictionary)."""
    return completed_with(folder) == as_recorded(options)


def completed_with(folder: PathLike) -> Optional[Any]:
    """The options with which ``folder`` was completed; None if it was not."""
    marker = Path(folder) / MARKER
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def as_recorded(options: Any) -> Any:
    """Options as a marker has them: infinity, such as ``grad_clip: .inf``, is null in JSON."""
    return json.loads(to_json(options))


def mark_complete(folder: PathLike, options: dict[str, Any]) -> None:
    """Record that everything in ``folder`` is whole and was made with ``options``."""
    write_json(Path(folder) / MARKER, options)


def fingerprint(folder: PathLike) -> str:
    """SHA-256 of a completed folder's marker: changes when the stage that made it was run with other options or inputs.

    Raises UserError when the folder is missing or incomplete, because the stage before was not run to its end.
    """
    marker = Path(folder) / MARKER
    if not marker.is_file():
        raise UserError(f"{folder}: not there or not complete; run the stage before this one first")
    return hash_file(marker)


class Busy(UserError):
    """Another process holds the right to write a folder."""


@contextmanager
def exclusive(folder: PathLike) -> Iterator[int]:
    """Hold the right to write ``folder``, and sweep away what a killed run left beside it.

    The lock is the operating system's, so a killed process gives it up. Yields the lock's file descriptor: processes that
    inherit it hold the lock as well. Raises Busy, which says who holds it, when another process does.
    """
    target = Path(os.path.realpath(folder))  # one lock, by whatever name the folder is given
    make_folder(target.parent)
    descriptor = os.open(target.parent / f".{target.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}, since {time.strftime(_TIME)}".encode())
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def atomic_stage(folder: PathLike, options: dict[str, Any]) -> Iterator[Optional[Path]]:
    """Yield a temporary folder that becomes ``folder``, marked complete, when the block ends well.

    Yields None, and says so in the log, when ``folder`` was already completed with the same ``options``.
    """
    with exclusive(folder):
        if is_complete(folder, options):
            logging.info("%s: complete already with the same options, skipped", folder)
            yield None
            return
        with atomic_directory(folder) as temporary:
            yield temporary
            mark_complete(temporary, options)
            # A kill while the old folder is being removed must not leave a part of it that looks complete.
            (Path(folder) / MARKER).unlink(missing_ok=True)


def _lock(descriptor: int, target: PathLike) -> None:
    try:
        import fcntl
    except ImportError:  # not on this operating system: one writer at a time is then up to the user
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "holder unknown"
        raise Busy(f"{target}: another process is writing it ({holder}); wait for it or end it") from None
    except OSError as error:  # some network file systems cannot lock
        logging.warning("%s: cannot be locked (%s); do not run this stage twice at once", target, error)
