"""Measure exported models in the runtimes of a device: real-time factor, latency, memory and file size of each size.

Every model runs in its own subprocess. Each round runs all sizes of one runtime, precision and number of threads, in a new
random order, so that other load on the machine affects them equally. Two sizes are compared by the median over rounds of
the ratio within a round.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

import numpy as np
from tqdm import tqdm

from espnet_todm.bench.models.chunks import Chunks, read_chunks
from espnet_todm.card import CARD, WEIGHTS, read_card
from espnet_todm.deploy.folder import extracted_folders
from espnet_todm.deploy.forms.registry import FORMATS, exported_files, of_format, open_exported
from espnet_todm.deploy.onnx.folder import FOLDER, PRECISIONS
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, RUNTIMES, SHERPA, TORCH
from espnet_todm.errors import UserError, last_line
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.child import child_environment, python_module
from espnet_todm.util.files import PathLike


@dataclass(frozen=True)
class Target:
    """One model in one runtime: the files of ``folder`` in one precision, run with ``threads`` threads."""

    size: str
    runtime: str
    precision: str
    threads: int
    folder: Path
    files: tuple[Path, ...]
    flops_per_second: float

    @property
    def input(self) -> str:
        """Kind of the model's input: "audio" or "features"."""
        return "audio" if self.runtime == SHERPA else "features"

    @property
    def setting(self) -> tuple[str, str, int]:
        """Runtime, precision and threads. Targets with the same setting are compared."""
        return self.runtime, self.precision, self.threads


@dataclass(frozen=True)
class Times:
    """Measurements of one target. elapsed, cpu: wall-clock and CPU seconds (rounds, utterances, 2), the last axis being
    [before the model, in the model]. runtime_mib, peak_mib: memory of the runtime without a model, and the peak. startup:
    seconds from the beginning of loading to the first result. chunks: of a streaming model."""

    elapsed: np.ndarray
    cpu: np.ndarray
    runtime_mib: float
    peak_mib: float
    startup: float
    chunks: Optional[Chunks] = None


class Worker(Protocol):
    """A loaded model. ``ready`` is its first answer. ``round`` times all utterances once. ``close`` stops the worker."""

    ready: Mapping[str, Any]

    def round(self) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class Process:
    """A worker in a subprocess (:mod:`espnet_todm.bench.models.worker`). Raises UserError when its model fails."""

    def __init__(self, target: Target, inputs: Path) -> None:
        self.target = target
        self.errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        threads = {name: str(target.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            python_module("espnet_todm.bench.models.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=child_environment(**threads),
        )
        try:
            self.ready = self._ask({**make_job(target), "inputs": str(inputs)})
        except BaseException:
            self.close()
            raise

    def round(self) -> Mapping[str, Any]:
        return self._ask("round")

    def close(self) -> None:
        """Close the pipes, which stops the process. A process that does not stop within 10 seconds is killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def _ask(self, request: object) -> Mapping[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the error message below has the process's last output
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"error": self._last_words()}
        if "error" in answer:
            raise UserError(f"{self.target.folder} in {self.target.runtime}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        last = last_line(self.errors.read()) or "it said nothing"
        return f"the process ended with status {status} ({last})"


Opener = Callable[[Target], Worker]


def make_job(target: Target) -> dict[str, Any]:
    """The job that describes a target to a worker. Raises UserError if sherpa-onnx would crash on the model."""
    job: dict[str, Any] = {"runtime": target.runtime, "precision": target.precision, "threads": target.threads}
    if target.runtime == SHERPA:  # checked in this process: the check's memory is not the model's
        from espnet_todm.deploy.runtime.sherpa_subprocess import make_order

        job["order"] = make_order(target.folder, target.precision, target.threads)
    return {**job, "folder": str(target.folder.resolve())}


def find_targets(
    experiment: PathLike,
    sizes: Sequence[str] = (),
    runtimes: Sequence[str] = RUNTIMES,
    precisions: Sequence[str] = ("fp32", "int8"),
    threads: Sequence[int] = (1,),
    graphs: str = FOLDER,
) -> list[Target]:
    """The targets of an experiment, largest size first within each setting. PyTorch runs only in fp32.

    graphs: the export format, a name of FORMATS. PyTorch cannot be measured with formats that run in chunks.

    Raises UserError for a missing size or graph, for an unknown name, and for fewer than one thread.
    """
    _check(runtimes, precisions, threads)
    if TORCH in runtimes and any(form.in_chunks for form in of_format(graphs)):
        raise UserError(f"runtimes: {TORCH} is not measured in chunks; allowed: {ONNXRUNTIME}, {SHERPA}")
    folders = extracted_folders(experiment, sizes)
    cards = {folder: read_card(folder / CARD) for folder in folders}
    ordered = sorted(folders, key=lambda folder: -cards[folder]["cost"]["flops_per_second"])
    return [
        _target(folder, cards[folder], runtime, precision, count, graphs)
        for runtime in runtimes
        for precision in (precisions if runtime != TORCH else ("fp32",))
        for count in threads
        for folder in ordered
    ]


def _target(folder: Path, card: Mapping[str, Any], runtime: str, precision: str, threads: int, graphs: str) -> Target:
    if runtime == TORCH:
        place, files = folder, [folder / WEIGHTS]
    else:
        place = folder / graphs
        files = list(exported_files(place, precision).values())
        if graphs != FORMATS[0] and open_exported(place, precision)[0].format != graphs:
            raise UserError(f"{place}: holds no {graphs} model; make it with bin.export --format {graphs}")
    flops = card["cost"]["flops_per_second"]
    found = Target(folder.name, runtime, precision, threads, place, tuple(files), flops)
    make_job(found)  # raises errors before anything is measured
    return found


def measure(targets: Sequence[Target], open_worker: Opener, rounds: int) -> dict[Target, Times]:
    """Time all targets, one setting after another. Raises UserError for fewer than one round and when a model fails."""
    check_number("rounds", rounds, at_least=1, whole=True)
    settings = list(dict.fromkeys(target.setting for target in targets))
    times: dict[Target, Times] = {}
    for number, setting in enumerate(settings):
        group = [target for target in targets if target.setting == setting]
        label = f"{' '.join(map(str, setting))} thread(s), {number + 1}/{len(settings)}"
        times.update(_take_turns(group, open_worker, rounds, label))
    return times


def _take_turns(group: Sequence[Target], open_worker: Opener, rounds: int, label: str) -> dict[Target, Times]:
    workers: dict[Target, Worker] = {}
    answers: dict[Target, list[Mapping[str, Any]]] = {target: [] for target in group}
    try:
        for target in group:
            workers[target] = open_worker(target)
        for number in tqdm(range(rounds), desc=label, unit="round", disable=None):
            for target in random.Random(number).sample(list(group), len(group)):
                answers[target].append(workers[target].round())
    finally:
        for worker in workers.values():
            worker.close()
    return {target: _times(workers[target].ready, answers[target]) for target in group}


def _times(ready: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Times:
    elapsed, cpu = (np.array([answer[clock] for answer in answers], dtype=float) for clock in ("elapsed", "cpu"))
    peak = max(float(answer["peak"]) for answer in answers)
    chunks = read_chunks(ready, answers) if "chunks" in answers[0] else None
    return Times(elapsed, cpu, float(ready["runtime"]), peak, float(ready["startup"]), chunks)


def _check(runtimes: Sequence[str], precisions: Sequence[str], threads: Sequence[int]) -> None:
    for option, values, allowed in (("runtimes", runtimes, RUNTIMES), ("precisions", precisions, PRECISIONS)):
        for value in values:
            check_choice(option, value, allowed)
    check_number("threads", min(threads, default=0), at_least=1, whole=True)
