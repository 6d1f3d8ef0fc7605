"""Speech in chunks as in sherpa-onnx's online recognizers: the frames of a chunk, and the tail of silence at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from espnet_todm.deploy.runtime.fbank import SILENCE, fbank
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, SAMPLING_RATE

# A chunk's features (1, window, F) and caches -> log posteriors (1, C, V), caches for the next chunk.
ChunkStep = Callable[[np.ndarray, Sequence[Any]], tuple[np.ndarray, Sequence[Any]]]


def whole_chunks(frames: int, window: int, shift: int) -> int:
    """Number of feature frames that sherpa-onnx uses of ``frames``. It starts a chunk when there is one frame more than the
    chunk needs, and ignores an incomplete chunk at the end."""
    chunks = max((frames - 1 - window) // shift + 1, 0)
    return (chunks - 1) * shift + window if chunks else 0


def tail_seconds(window: int) -> float:
    """Seconds of silence after which the last sample of any utterance is in a whole chunk of ``window`` feature frames."""
    return (window + 2) / FRAMES_PER_SECOND


def with_tail(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Append ``seconds`` of digital silence to samples (N,) float32."""
    return np.concatenate([samples, np.zeros(round(seconds * SAMPLING_RATE), dtype=np.float32)])


def stream_features(
    samples: np.ndarray, mel_bins: int, window: int, shift: int, compute: Callable[..., np.ndarray] = fbank
) -> np.ndarray:
    """samples (N,) float32 -> features (T, mel_bins) of the whole chunks of samples and tail. ``compute``: as fbank."""
    features = compute(with_tail(samples, tail_seconds(window)), mel_bins)
    return features[: whole_chunks(len(features), window, shift)]


def run_chunks(step: ChunkStep, caches: Sequence[Any], features: np.ndarray, window: int, shift: int) -> np.ndarray:
    """Features (T, F) -> log posteriors (T', V), computed chunk by chunk. An incomplete chunk at the end is padded with
    features of silence."""
    chunks = max(-(-(len(features) - window) // shift) + 1, 1)
    missing = (chunks - 1) * shift + window - len(features)
    padded = np.pad(features, ((0, missing), (0, 0)), constant_values=SILENCE)
    outputs = []
    for start in range(0, chunks * shift, shift):
        output, caches = step(padded[None, start : start + window], caches)
        outputs.append(output[0])
    return np.concatenate(outputs)
