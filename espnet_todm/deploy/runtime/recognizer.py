"""sherpa-onnx's recognizers behind one interface, which the benchmark times, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from espnet_todm.util.acoustics import SAMPLING_RATE


class Recognizer(ABC):
    """A recognizer of sherpa-onnx, ``stock``, with a model in it.

    ``chunk_seconds``: of speech that a streaming model takes at a time; 0 for whole utterances.
    """

    chunk_seconds: float = 0.0

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(self, samples: np.ndarray) -> str:
        """samples (N,) float32 in [-1, 1] -> text, with single spaces between words."""
        return " ".join(self.infer(self.prepare(samples), []).split())

    @abstractmethod
    def prepare(self, samples: np.ndarray) -> Any:
        """What is done to an utterance before the model runs."""

    @abstractmethod
    def infer(self, prepared: Any, chunks: list[float]) -> str:
        """From there to text. ``chunks`` gets the seconds that each chunk took, of a streaming model."""


class OfflineRecognizer(Recognizer):
    """``sherpa_onnx.OfflineRecognizer``. Features are computed as it accepts samples."""

    def prepare(self, samples: np.ndarray) -> Any:
        stream = self.stock.create_stream()
        stream.accept_waveform(SAMPLING_RATE, samples)
        return stream

    def infer(self, prepared: Any, chunks: list[float]) -> str:
        self.stock.decode_stream(prepared)
        return str(prepared.result.text)
