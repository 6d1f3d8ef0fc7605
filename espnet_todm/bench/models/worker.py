"""The process in which one model is timed: it holds that model and nothing else, so that its memory is the model's.

Started by :mod:`espnet_todm.bench.models.measure`. The job comes as one line of JSON on standard input. The first answer,
when the model is loaded and has run once, is ``{"runtime": MiB}``, what the runtime alone takes; then each line "round"
times all utterances once. Answers are lines of JSON on standard output, an error that a user can cause is ``{"error":
words}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from espnet_todm.bench.models.models import Model, StreamOfFeatures, StreamOfSamples, import_runtime, load_model
from espnet_todm.errors import UserError
from espnet_todm.util.memory import peak_memory, reset_peak, resident_memory


def main() -> None:
    """Answer requests until standard input ends."""
    answers = _private_output()
    try:
        for answer in serve(json.loads(sys.stdin.readline()), sys.stdin):
            print(json.dumps(answer), file=answers, flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)


def serve(job: dict[str, Any], requests: TextIO) -> Iterator[dict[str, Any]]:
    """Answers to a job and the rounds after it. Raises UserError for a model that cannot be loaded."""
    import_runtime(job["runtime"])
    with np.load(job["inputs"]) as stored:
        inputs = [stored[name] for name in stored.files]
    reset_peak()
    before = resident_memory()
    model = load_model(job, inputs)
    time_round(model, len(inputs))
    yield {"runtime": before}
    for _ in requests:
        times = time_round(model, len(inputs))
        yield {**times, "peak": peak_memory()}


def time_round(model: Model, utterances: int) -> dict[str, list[Any]]:
    """Seconds of each utterance, [before the model, in the model]: of the wall clock ("elapsed") and of the processor, all
    threads together ("cpu"). Of a streaming model also the seconds of each chunk ("chunks")."""
    elapsed, cpu = [], []
    for number in range(utterances):
        looks = [(time.perf_counter(), time.process_time())]
        prepared = model.prepare(number)
        looks.append((time.perf_counter(), time.process_time()))
        model.infer(prepared)
        looks.append((time.perf_counter(), time.process_time()))
        spans = [[after - before for before, after in zip(*pair)] for pair in zip(looks, looks[1:])]
        elapsed.append([span[0] for span in spans])
        cpu.append([span[1] for span in spans])
    told: dict[str, list[Any]] = {"elapsed": elapsed, "cpu": cpu}
    if isinstance(model, (StreamOfFeatures, StreamOfSamples)):
        told["chunks"], model.chunks = model.chunks, []
    return told


def _private_output() -> TextIO:
    """Standard output for answers alone: what a runtime prints goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
