"""Measure exported models as a device runs them: real-time factor, latency, memory and file size of each size, side by side.

Every model has a process of its own. All sizes of one runtime, precision and number of threads take turns in every round,
each time in another order, so that a slow moment of the machine hits all alike; what is told of two sizes is the median
over rounds of the ratio within a round.
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

from espnet_todm.card import CARD, WEIGHTS, read_card
from espnet_todm.deploy.folder import subnet_folders
from espnet_todm.deploy.forms.registry import FORMATS, exported_files, of_format, open_exported
from espnet_todm.deploy.onnx.folder import FOLDER, PRECISIONS
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, RUNTIMES, SHERPA, TORCH
from espnet_todm.errors import UserError, last_line
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.child import child_environment, python_module
from espnet_todm.util.files import PathLike


@dataclass(frozen=True)
class Target:
    """One model in one runtime: files of ``folder`` in a precision, with so many threads."""

    size: str
    runtime: str
    precision: str
    threads: int
    folder: Path
    files: tuple[Path, ...]
    flops_per_second: float

    @property
    def input(self) -> str:
        """What its model takes: "audio", or "features"."""
        return "audio" if self.runtime == SHERPA else "features"

    @property
    def setting(self) -> tuple[str, str, int]:
        """What targets that are compared have in common."""
        return self.runtime, self.precision, self.threads


@dataclass(frozen=True)
class Times:
    """What was measured of one target: seconds (rounds, utterances, 2), before the model and in the model, by the wall clock
    and of the processor; and memory in MiB, of the runtime alone and the most of all. Of a streaming model also the seconds
    of each chunk (rounds, chunks) by the wall clock, and the seconds of speech in one."""

    elapsed: np.ndarray
    cpu: np.ndarray
    runtime_mib: float
    peak_mib: float
    chunks: Optional[np.ndarray] = None
    chunk_seconds: float = 0.0


class Worker(Protocol):
    """A loaded model. ``ready`` is its first answer, ``round`` times all utterances once, ``close`` ends it."""

    ready: Mapping[str, Any]

    def round(self) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class Process:
    """A worker in a process of its own (:mod:`espnet_todm.bench.models.worker`). Raises UserError when its model fails."""

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
        """End the process; it ends by itself when nothing more is asked."""
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
            pass  # what it said last is told below
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
    """What a worker has to know of a target. Raises UserError where sherpa-onnx would not survive the model."""
    job: dict[str, Any] = {"runtime": target.runtime, "precision": target.precision, "threads": target.threads}
    if target.runtime == SHERPA:  # looked at here: what that takes is not the model's memory
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
    """What can be measured of an experiment, largest size first within each setting; PyTorch runs in fp32 alone.

    graphs: their folder, of FORMATS. PyTorch is not measured beside forms in chunks.

    Raises UserError for a size or a graph that is not there, for an unknown name, and for less than one thread.
    """
    _check(runtimes, precisions, threads)
    if TORCH in runtimes and any(form.in_chunks for form in of_format(graphs)):
        raise UserError(f"runtimes: {TORCH} is not measured in chunks; allowed: {ONNXRUNTIME}, {SHERPA}")
    folders = subnet_folders(experiment, sizes)
    if not folders:
        raise UserError(f"{experiment}: has no subnets/<size>; write them with python -m espnet_todm.bin.extract")
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
    make_job(found)  # faults are told before anything is measured
    return found


def measure(targets: Sequence[Target], open_worker: Opener, rounds: int) -> dict[Target, Times]:
    """Time all targets, setting by setting. Raises UserError for no rounds and when a model fails."""
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
    chunks = np.array([answer["chunks"] for answer in answers], dtype=float) if "chunks" in answers[0] else None
    peak, seconds = max(float(answer["peak"]) for answer in answers), float(ready.get("chunk_seconds", 0.0))
    return Times(elapsed, cpu, float(ready["runtime"]), peak, chunks, seconds)


def _check(runtimes: Sequence[str], precisions: Sequence[str], threads: Sequence[int]) -> None:
    for option, values, allowed in (("runtimes", runtimes, RUNTIMES), ("precisions", precisions, PRECISIONS)):
        for value in values:
            check_choice(option, value, allowed)
    check_number("threads", min(threads, default=0), at_least=1, whole=True)
