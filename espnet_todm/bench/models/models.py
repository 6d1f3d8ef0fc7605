"""Models as they are timed: what is done to an utterance before the model runs apart from the model itself.

Used inside :mod:`espnet_todm.bench.models.worker`; a runtime is imported where it is needed, since its memory counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from espnet_todm.deploy.runtime.base import ONNXRUNTIME, SHERPA, TORCH, StepRuntime
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.streaming import StreamingOnnx, run_chunks, with_tail
from espnet_todm.util.acoustics import FRAME_SAMPLES, SAMPLING_RATE
from espnet_todm.util.optional import needed

# What is imported before a model is loaded, and so counts as the runtime's.
MODULES = {
    ONNXRUNTIME: ("onnxruntime", "espnet_todm.deploy.runtime.onnx"),
    SHERPA: ("sherpa_onnx", "espnet_todm.deploy.runtime.sherpa_subprocess"),
    TORCH: ("torch", "espnet_todm.deploy.runtime.torch"),
}


class Model(Protocol):
    """A model with the utterances that it is timed on."""

    def prepare(self, number: int) -> Any:
        """What is done to utterance ``number`` before the model runs: its features, where the runtime computes them."""

    def infer(self, prepared: Any) -> object:
        """From there to labels or text."""


class FromFeatures:
    """onnxruntime and PyTorch, from features (T, F) to labels."""

    def __init__(self, runtime: StepRuntime, inputs: Sequence[np.ndarray]) -> None:
        self.runtime, self.inputs = runtime, inputs

    def prepare(self, number: int) -> np.ndarray:
        return self.inputs[number]

    def infer(self, prepared: np.ndarray) -> list[int]:
        return self.runtime.labels(self.runtime.path(self.runtime.encode(prepared)))


class FromSamples:
    """sherpa-onnx's recognizer, from samples (S,) to text; features are computed as it accepts samples."""

    def __init__(self, recognizer: Any, inputs: Sequence[np.ndarray]) -> None:
        self.recognizer, self.inputs = recognizer, inputs

    def prepare(self, number: int) -> Any:
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLING_RATE, self.inputs[number])
        return stream

    def infer(self, prepared: Any) -> str:
        self.recognizer.decode_stream(prepared)
        return str(prepared.result.text)


class StreamOfFeatures(FromFeatures):
    """A streaming model in onnxruntime, from features (T, F) to the best label of each frame, chunk by chunk.

    ``chunks``: seconds from a chunk's features to its labels, of all chunks that were run.
    """

    runtime: StreamingOnnx

    def __init__(self, runtime: StreamingOnnx, inputs: Sequence[np.ndarray]) -> None:
        super().__init__(runtime, inputs)
        self.chunks: list[float] = []

    def infer(self, prepared: np.ndarray) -> list[int]:
        def timed(features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
            start = time.perf_counter()
            posteriors, after = self.runtime.step(features, caches)
            best = posteriors.argmax(-1)
            self.chunks.append(time.perf_counter() - start)
            return best, after

        best: list[int] = run_chunks(
            timed, self.runtime.initial(), prepared, self.runtime.window, self.runtime.shift
        ).tolist()
        return best


class StreamOfSamples:
    """sherpa-onnx's online recognizer, from samples (S,) to text. It gets as many at a time as a chunk moves on, and the
    model's tail of silence behind.

    ``chunks``: seconds from handing over a chunk's last samples to having its text, the features computed in between.
    """

    def __init__(self, recognizer: Any, inputs: Sequence[np.ndarray], shift: int, tail_seconds: float) -> None:
        self.recognizer, self.inputs, self.tail_seconds = recognizer, inputs, tail_seconds
        self.piece = shift * FRAME_SAMPLES
        self.chunks: list[float] = []

    def prepare(self, number: int) -> np.ndarray:
        return with_tail(self.inputs[number], self.tail_seconds)

    def infer(self, prepared: np.ndarray) -> str:
        stream = self.recognizer.create_stream()
        for begin in range(0, len(prepared), self.piece):
            start = time.perf_counter()
            stream.accept_waveform(SAMPLING_RATE, prepared[begin : begin + self.piece])
            while self.recognizer.is_ready(stream):
                self.recognizer.decode_stream(stream)
                self.chunks.append(time.perf_counter() - start)
                start = time.perf_counter()
        return str(self.recognizer.get_result(stream))


def import_runtime(runtime: str) -> None:
    """Import a runtime and what runs models in it. Raises UserError where it is not installed."""
    for module in MODULES[runtime]:
        needed(module)


def load_model(job: Mapping[str, Any], inputs: Sequence[np.ndarray]) -> Model:
    """The model of a job (:func:`~espnet_todm.bench.models.measure.make_job`) with its utterances, float32: features (T, F)
    each, samples (S,) for sherpa-onnx. Raises UserError when it cannot run."""
    if job["runtime"] == SHERPA:
        from espnet_todm.deploy.runtime.sherpa_subprocess import Recognizer

        recognizer, shift = Recognizer(**job["order"]), job.get("shift")
        if shift:
            return StreamOfSamples(recognizer.stock, inputs, shift, recognizer.tail_seconds)
        return FromSamples(recognizer.stock, inputs)
    opened = open_runtime(job["runtime"], job["folder"], job["precision"], job["threads"])
    if job.get("shift"):
        return StreamOfFeatures(cast(StreamingOnnx, opened), inputs)
    return FromFeatures(cast(StepRuntime, opened), inputs)
