"""Streaming models chunk by chunk in onnxruntime, as in sherpa-onnx's online recognizer. Nothing here imports PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from espnet_todm.acoustics import FRAME_SAMPLES
from espnet_todm.deploy.runtime.onnx import OnnxCtc, Session
from espnet_todm.errors import UserError

# A chunk's features (1, window, F) and caches -> log posteriors (1, C, V), caches for the next chunk.
ChunkStep = Callable[[np.ndarray, Sequence[Any]], tuple[np.ndarray, Sequence[Any]]]


def whole_chunks(frames: int, window: int, shift: int) -> int:
    """How many of so many feature frames sherpa-onnx takes: it starts on a chunk when there is one frame more than the chunk
    needs, and leaves at the end what makes no whole chunk."""
    chunks = max((frames - 1 - window) // shift + 1, 0)
    return (chunks - 1) * shift + window if chunks else 0


def with_tail(samples: np.ndarray, window: int) -> np.ndarray:
    """samples (N,) float32 with quiet noise behind, enough to bring the last sample into a whole chunk.

    No zeros: digital silence is nothing that a microphone gives, and its log energy is another in each library.
    """
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(window + 2) * FRAME_SAMPLES)
    return np.concatenate([samples, noise.astype(np.float32)])


def run_chunks(step: ChunkStep, caches: Sequence[Any], features: np.ndarray, window: int, shift: int) -> np.ndarray:
    """Features (T, F) -> log posteriors (T', V) of their whole chunks. Raises UserError where they are too short for one."""
    outputs = []
    for start in range(0, len(features) - window + 1, shift):
        output, caches = step(features[None, start : start + window], caches)
        outputs.append(output[0])
    if not outputs:
        raise UserError(f"speech: {len(features)} feature frames are too few for one chunk, which takes {window}")
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

    def encode(self, features: np.ndarray) -> np.ndarray:
        return run_chunks(self.step, self.initial(), features, self.window, self.shift)

    def step(self, features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        """One chunk, see :data:`ChunkStep`."""
        output, *after = self._first(features, *caches)
        return output, after
