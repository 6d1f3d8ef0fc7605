"""Streaming models chunk by chunk in onnxruntime, as in sherpa-onnx's online recognizer. Nothing here imports PyTorch.

A chunk's work begins when all its frames are there, so an utterance's end, and all of one that is shorter than a chunk, is
heard only with silence behind it: the tail. The runtimes here add it by themselves; sherpa-onnx's user gives it before
``input_finished``, as docs/streaming.md says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from espnet_todm.deploy.runtime.fbank import SILENCE, fbank
from espnet_todm.deploy.runtime.onnx import OnnxCtc, Session
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, SAMPLING_RATE

# A chunk's features (1, window, F) and caches -> log posteriors (1, C, V), caches for the next chunk.
ChunkStep = Callable[[np.ndarray, Sequence[Any]], tuple[np.ndarray, Sequence[Any]]]


def whole_chunks(frames: int, window: int, shift: int) -> int:
    """How many of so many feature frames sherpa-onnx takes: it starts on a chunk when there is one frame more than the chunk
    needs, and leaves at the end what makes no whole chunk."""
    chunks = max((frames - 1 - window) // shift + 1, 0)
    return (chunks - 1) * shift + window if chunks else 0


def tail_seconds(window: int) -> float:
    """Silence that brings the last sample of any utterance into a whole chunk of so many feature frames."""
    return (window + 2) / FRAMES_PER_SECOND


def with_tail(samples: np.ndarray, seconds: float) -> np.ndarray:
    """samples (N,) float32 with so much digital silence behind."""
    return np.concatenate([samples, np.zeros(round(seconds * SAMPLING_RATE), dtype=np.float32)])


def stream_features(samples: np.ndarray, mel_bins: int, window: int, shift: int) -> np.ndarray:
    """samples (N,) float32 -> features (T, mel_bins) of the whole chunks that they make with their tail."""
    features = fbank(with_tail(samples, tail_seconds(window)), mel_bins)
    return features[: whole_chunks(len(features), window, shift)]


def run_chunks(step: ChunkStep, caches: Sequence[Any], features: np.ndarray, window: int, shift: int) -> np.ndarray:
    """Features (T, F) -> log posteriors (T', V) chunk by chunk. What is left at the end, or too short for one chunk, gets
    features of silence behind it."""
    chunks = max(-(-(len(features) - window) // shift) + 1, 1)
    missing = (chunks - 1) * shift + window - len(features)
    padded = np.pad(features, ((0, missing), (0, 0)), constant_values=SILENCE)
    outputs = []
    for start in range(0, chunks * shift, shift):
        output, caches = step(padded[None, start : start + window], caches)
        outputs.append(output[0])
    return np.concatenate(outputs)


class StreamingOnnx(OnnxCtc):
    """model.onnx of a streaming export: a chunk's features and the caches in, log posteriors and the caches out."""

    def __init__(self, graphs: Mapping[str, Session], tokens: Sequence[str]) -> None:
        super().__init__(graphs, tokens)
        about = self._first.metadata
        self.window, self.shift = int(about["T"]), int(about["decode_chunk_len"])
        self.chunk = int(about["todm_chunk_frames"]), int(about["todm_left_frames"])

    def initial(self) -> list[np.ndarray]:
        """Caches of one stream before its first chunk: the dimension of streams is the one without a number."""
        return [
            np.zeros(
                [n if isinstance(n, int) else 1 for n in value.shape], np.int64 if "int64" in value.type else np.float32
            )
            for value in self._first.inputs[1:]
        ]

    def features(self, samples: np.ndarray) -> np.ndarray:
        return stream_features(samples, self.mel_bins, self.window, self.shift)

    def encode(self, features: np.ndarray) -> np.ndarray:
        return run_chunks(self.step, self.initial(), features, self.window, self.shift)

    def step(self, features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        """One chunk, see :data:`ChunkStep`."""
        output, *after = self._first(features, *caches)
        return output, after
