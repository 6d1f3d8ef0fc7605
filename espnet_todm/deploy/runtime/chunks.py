"""Speech in chunks, as sherpa-onnx's online recognizers take it: what makes a chunk, and the silence behind the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from espnet_todm.deploy.runtime.fbank import SILENCE, fbank
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
