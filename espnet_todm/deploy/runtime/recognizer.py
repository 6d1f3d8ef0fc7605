"""sherpa-onnx's recognizers behind one interface, also for benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from espnet_todm.util.acoustics import SAMPLING_RATE


class Recognizer(ABC):
    """Wraps ``stock``, a recognizer of sherpa-onnx with a loaded model.

    ``chunk_seconds``: seconds of speech per chunk of a streaming model; 0 for whole utterances.
    """

    chunk_seconds: float = 0.0

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(self, samples: np.ndarray) -> str:
        """samples (N,) float32 in [-1, 1] -> text, with single spaces between words."""
        return " ".join(self.infer(self.prepare(samples), []).split())

    @abstractmethod
    def prepare(self, samples: np.ndarray) -> Any:
        """samples (N,) -> input of :meth:`infer`; all work before the model runs."""

    @abstractmethod
    def infer(self, prepared: Any, chunks: list[float]) -> str:
        """Output of :meth:`prepare` -> text. A streaming model appends the seconds of each chunk to ``chunks``."""


class OfflineRecognizer(Recognizer):
    """``sherpa_onnx.OfflineRecognizer``. :meth:`prepare` computes the features."""

    def prepare(self, samples: np.ndarray) -> Any:
        stream = self.stock.create_stream()
        stream.accept_waveform(SAMPLING_RATE, samples)
        return stream

    def infer(self, prepared: Any, chunks: list[float]) -> str:
        self.stock.decode_stream(prepared)
        return str(prepared.result.text)
