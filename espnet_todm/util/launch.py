"""Run one function over many arguments: in local processes, or on a Slurm cluster through submitit.

The first failure stops the other jobs and becomes one line that names the log. Results come back in the arguments'
order.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, Optional

from tqdm import tqdm

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.files import PathLike, make_folder
from espnet_todm.util.lifetime import end_with_parent

LAUNCHERS = ("local", "slurm", "submitit-local")
_SPAWN = multiprocessing.get_context("spawn")  # forked children would inherit locks held by torch's threads


class JobError(UserError):
    """A job failed. The message is one line: which job, why, and where its log is."""


def launch(
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
    *,
    jobs: int = 1,
    launcher: str = "local",
    logs: PathLike = "logs",
    name: str = "jobs",
    options: Optional[dict[str, Any]] = None,
) -> list[Any]:
    """Return ``[function(argument) for argument in arguments]``, computed by ``jobs`` processes.

    ``function`` stands at the top level of a module, and it, its arguments and its results can be pickled.

    launcher: ``local`` (processes here; one job runs in this process), ``slurm`` (a job array), or ``submitit-local``
        (the cluster's path through submitit, with processes of this machine: for trying it).
    logs: folder for what the jobs print, one file for each argument (``local``) or job (submitit).
    options: for submitit's executor, e.g. ``{"slurm_partition": "long", "timeout_min": 600}``.

    Raises JobError at the first failure, after stopping the others; UserError for a wrong number of jobs or launcher.
    """
    check_number("jobs", jobs, at_least=1, whole=True)
    check_choice("launcher", launcher, LAUNCHERS)
    folder = make_folder(logs)
    arguments, jobs = list(arguments), min(jobs, len(arguments))
    if not arguments:
        return []
    if launcher != "local":
        return _launch_submitit(function, arguments, jobs, launcher, folder, name, options or {})
    if jobs == 1:
        return _launch_here(function, arguments, folder, name)
    return _launch_local(function, arguments, jobs, folder, name)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--jobs``, ``--launcher``, ``--launcher_options`` and ``--logs`` to a command."""
    group = parser.add_argument_group("jobs")
    group.add_argument("--jobs", type=int, default=1, help="processes or cluster jobs at a time (default 1)")
    group.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where jobs run (default local)")
    group.add_argument("--launcher_options", default="", help="for submitit, e.g. slurm_partition=long,timeout_min=600")
    group.add_argument("--logs", default="logs", help="folder for the jobs' logs (default logs)")


def launcher_arguments(parsed: argparse.Namespace) -> dict[str, Any]:
    """What ``add_launcher_arguments`` parsed, as keyword arguments of ``launch``."""
    options = parse_options(parsed.launcher_options)
    return {"jobs": parsed.jobs, "launcher": parsed.launcher, "logs": parsed.logs, "options": options}


def parse_options(text: str) -> dict[str, Any]:
    """``"a=1,b=x"`` -> ``{"a": 1, "b": "x"}``. Raises UserError for anything without ``=``."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for key, equals, value in pairs:
        if not (key.strip() and equals and value.strip()):
            raise UserError(f"launcher_options: {key + equals + value!r}, but key=value,key=value is expected")
    return {key.strip(): int(value) if value.strip().isdigit() else value.strip() for key, _, value in pairs}


# ---- this process ----------------------------------------------------------------------------------------------------


def _launch_here(function: Callable[[Any], Any], arguments: list[Any], logs: Path, name: str) -> list[Any]:
    results = []
    for number, argument in enumerate(tqdm(arguments, desc=name, unit="job", disable=None)):
        try:
            results.append(function(argument))
        except Exception as error:
            log = _log_path(logs, name, number)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            raise _failure(name, number, len(arguments), _in_words(error), log) from error
    return results


# ---- local processes -------------------------------------------------------------------------------------------------


def _launch_local(function: Callable[[Any], Any], arguments: list[Any], jobs: int, logs: Path, name: str) -> list[Any]:
    workers: dict[Any, Any] = {}  # connection -> process
    try:
        with _one_thread_each():
            for _ in range(jobs):
                ours, theirs = _SPAWN.Pipe()
                process = _SPAWN.Process(target=_work, args=(theirs, function), daemon=True)
                process.start()
                theirs.close()  # so that a dead worker is seen as the end of the pipe
                workers[ours] = process
        return _dispatch(workers, arguments, logs, name)
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _dispatch(workers: dict[Any, Any], arguments: list[Any], logs: Path, name: str) -> list[Any]:
    """Hand each free worker the next argument until all have results."""
    results: list[Any] = [None] * len(arguments)
    waiting = iter(range(len(arguments)))
    busy: dict[Any, int] = {}

    def feed(connection: Any) -> None:
        number = next(waiting, None)
        if number is not None:
            busy[connection] = number
            try:
                connection.send((arguments[number], str(_log_path(logs, name, number))))
            except BrokenPipeError:  # the worker died before its first job: receiving says how
                return

    with tqdm(total=len(arguments), desc=name, unit="job", disable=None) as progress:
        for connection in workers:
            feed(connection)
        ready: Any
        while busy:
            for ready in wait(list(busy)):
                number = busy.pop(ready)
                value: Any
                try:
                    good, value = ready.recv()
                except (EOFError, ConnectionResetError):
                    good, value = False, _death(workers[ready])
                if not good:
                    raise _failure(name, number, len(arguments), value, _log_path(logs, name, number))
                results[number] = value
                progress.update()
                feed(ready)
    return results


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: take an argument, compute with the output going to its log, send the result."""
    end_with_parent()  # its next run must not meet writers of the last one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard stops the parent, and the parent stops its workers
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    while True:
        try:
            argument, log = connection.recv()
        except EOFError:
            return
        with _output_to(log):
            connection.send(_attempt(function, argument))


def _attempt(function: Callable[[Any], Any], argument: Any) -> tuple[bool, Any]:
    """Whether it went well, and the result or what went wrong; the traceback is printed."""
    try:
        return True, function(argument)
    except Exception as error:
        traceback.print_exc()
        return False, _in_words(error)


@contextmanager
def _output_to(log: str) -> Iterator[None]:
    """Send this process's output, libraries in C included, to a file."""
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with redirect_stdout(file), redirect_stderr(file):
            yield


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers that are started inside use one thread each, unless the user chose a number."""
    chosen = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["OMP_NUM_THREADS"]


def _death(process: Any) -> str:
    process.join()
    if process.exitcode is not None and process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        return f"process ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"process ended with exit status {process.exitcode}"


# ---- submitit --------------------------------------------------------------------------------------------------------


def _launch_submitit(
    function: Callable[[Any], Any],
    arguments: list[Any],
    jobs: int,
    launcher: str,
    logs: Path,
    name: str,
    options: dict[str, Any],
) -> list[Any]:
    if importlib.util.find_spec("submitit") is None:
        raise UserError(f"launcher: {launcher!r} needs submitit; install it with: pip install submitit")
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=logs, cluster="slurm" if launcher == "slurm" else "local")
        executor.update_parameters(name=name, **options)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"launcher {launcher}, options {options}: {_in_words(error)}") from error
    bounds = [len(arguments) * job // jobs for job in range(jobs + 1)]
    with executor.batch():
        batches = [
            executor.submit(_work_batch, function, arguments[start:end]) for start, end in zip(bounds, bounds[1:])
        ]
    try:
        return _collect(batches, name)
    finally:
        for batch in batches:
            if not batch.done():
                batch.cancel()


def _collect(batches: list[Any], name: str, seconds_between_looks: float = 0.5) -> list[Any]:
    results: dict[int, Any] = {}
    with tqdm(total=len(batches), desc=name, unit="job", disable=None) as progress:
        while len(results) < len(batches):
            for number, batch in enumerate(batches):
                if number in results or not batch.done():
                    continue
                error = batch.exception()  # set when the job ended without a result: killed, timed out, node lost
                good, value = (False, f"no result: {_in_words(error)}") if error else batch.result()
                if not good:
                    raise _failure(name, number, len(batches), value, Path(batch.paths.stderr))
                results[number] = value
                progress.update()
            if len(results) < len(batches):
                time.sleep(seconds_between_looks)
    return [result for number in range(len(batches)) for result in results[number]]


def _work_batch(function: Callable[[Any], Any], arguments: list[Any]) -> tuple[bool, Any]:
    return _attempt(lambda batch: [function(argument) for argument in batch], arguments)


# ---- words -----------------------------------------------------------------------------------------------------------


def _log_path(logs: Path, name: str, number: int) -> Path:
    return logs / f"{name.replace(' ', '_').replace('/', '_')}.{number + 1}.log"


def _in_words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    kind = "" if isinstance(error, UserError) else type(error).__name__ + ": "
    return kind + (lines[-1] if lines else "no message")


def _failure(name: str, number: int, total: int, words: str, log: Path) -> JobError:
    return JobError(f"{name}: job {number + 1} of {total} failed: {words} (log: {log})")
