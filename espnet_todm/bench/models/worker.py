"""The subprocess in which one model is timed. It loads only this model, so its memory is that of the model.

:mod:`espnet_todm.bench.models.measure` starts it. The job is one line of JSON on standard input. The worker loads the model,
runs it once, and answers ``{"runtime": MiB, "startup": S, "chunk_seconds": S, "tail_seconds": S}``: the memory of the
runtime without the model; the seconds from the beginning of loading to the result of the first utterance, with the
runtime's library already loaded; and :class:`~espnet_todm.deploy.runtime.base.Timed`'s two lengths. Then each line "round"
times all utterances once. Answers are lines of JSON on standard output. An error that a user can cause is
``{"error": message}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO, cast

import numpy as np

from espnet_todm.deploy.runtime.base import ONNXRUNTIME, SHERPA, TORCH, ChunkTime, StepRuntime, Timed
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from espnet_todm.util.memory import peak_memory, reset_peak, resident_memory
from espnet_todm.util.optional import needed

# Modules imported before a model is loaded. Their memory counts as the runtime's.
MODULES = {
    ONNXRUNTIME: ("onnxruntime", "espnet_todm.deploy.runtime.onnx"),
    SHERPA: ("sherpa_onnx", "espnet_todm.deploy.runtime.sherpa_subprocess"),
    TORCH: ("torch", "espnet_todm.deploy.runtime.torch"),
}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = _private_output()
    try:
        for answer in serve(json.loads(sys.stdin.readline()), sys.stdin):
            print(json.dumps(answer), file=answers, flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)


def serve(job: dict[str, Any], requests: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the answers to a job and to the rounds after it. Raises UserError for a model that cannot be loaded."""
    import_runtime(job["runtime"])
    with np.load(job["inputs"]) as stored:
        inputs = [stored[name] for name in stored.files]
    reset_peak()
    before = resident_memory()
    start = time.perf_counter()
    model = load_model(job)
    time_round(model, inputs[:1])
    startup = time.perf_counter() - start
    time_round(model, inputs[1:])
    lengths = {"chunk_seconds": model.chunk_seconds, "tail_seconds": model.tail_seconds}
    yield {"runtime": before, "startup": startup, **lengths}
    for _ in requests:
        times = time_round(model, inputs)
        yield {**times, "peak": peak_memory()}


def import_runtime(runtime: str) -> None:
    """Import a runtime and this package's module for it. Raises UserError if the runtime is not installed."""
    for module in MODULES[runtime]:
        needed(module)


def load_model(job: Mapping[str, Any]) -> Timed:
    """Load the model of a job (:func:`~espnet_todm.bench.models.measure.make_job`). Raises UserError if it cannot run."""
    if job["runtime"] == SHERPA:
        from espnet_todm.deploy.runtime.sherpa_subprocess import make_recognizer

        return make_recognizer(job["order"])
    return cast(StepRuntime, open_runtime(job["runtime"], job["folder"], job["precision"], job["threads"]))


def time_round(model: Timed, inputs: Sequence[np.ndarray]) -> dict[str, list[Any]]:
    """Time each utterance: [before the model, in the model], in wall-clock seconds ("elapsed") and in CPU seconds summed
    over threads ("cpu"). For a streaming model also the wall-clock seconds of each chunk ("chunks", a list for each
    utterance) and the number of the chunk in which the first text was found ("first", -1 if there was none)."""
    elapsed, cpu = [], []
    streamed: list[list[ChunkTime]] = []
    for utterance in inputs:
        chunks: list[ChunkTime] = []
        looks = [(time.perf_counter(), time.process_time())]
        prepared = model.prepare(utterance)
        looks.append((time.perf_counter(), time.process_time()))
        model.infer(prepared, chunks)
        looks.append((time.perf_counter(), time.process_time()))
        spans = [[after - before for before, after in zip(*pair)] for pair in zip(looks, looks[1:])]
        elapsed.append([span[0] for span in spans])
        cpu.append([span[1] for span in spans])
        streamed.append(chunks)
    times: dict[str, list[Any]] = {"elapsed": elapsed, "cpu": cpu}
    if any(streamed):
        times["chunks"] = [[chunk.seconds for chunk in chunks] for chunks in streamed]
        times["first"] = [next((n for n, chunk in enumerate(chunks) if chunk.heard), -1) for chunks in streamed]
    return times


def _private_output() -> TextIO:
    """Reserve standard output for answers. Output of the runtime goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
