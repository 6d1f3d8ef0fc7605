"""sherpa-onnx's recognizers behind one interface, also for benchmarks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from espnet_todm.deploy.runtime.base import ChunkTime
from espnet_todm.util.acoustics import SAMPLING_RATE

_PUNCTUATION = r"!-/:-@\[-`{-~\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_CJK = r"\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
_REMOVED = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])| (?=[{_PUNCTUATION}])")


def as_sherpa_writes(text: str) -> str:
    """Remove the spaces that sherpa-onnx 2 removes from a transducer's text: before punctuation, an apostrophe included,
    and between CJK characters (its RemoveSpaceBetweenCjk). A CTC model's text keeps them."""
    return _REMOVED.sub("", text)


class Recognizer(ABC):
    """Wraps ``stock``, a recognizer of sherpa-onnx with a loaded model.

    ``chunk_seconds``, ``tail_seconds``: see :class:`~espnet_todm.deploy.runtime.base.Timed`.
    """

    chunk_seconds: float = 0.0
    tail_seconds: float = 0.0

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(self, samples: np.ndarray) -> str:
        """samples (N,) float32 in [-1, 1] -> text, with single spaces between words."""
        return " ".join(self.infer(self.prepare(samples), []).split())

    @abstractmethod
    def prepare(self, samples: np.ndarray) -> Any:
        """samples (N,) -> input of :meth:`infer`; all work before the model runs."""

    @abstractmethod
    def infer(self, prepared: Any, chunks: list[ChunkTime]) -> str:
        """Output of :meth:`prepare` -> text. A streaming model appends the time of each chunk to ``chunks``."""


class OfflineRecognizer(Recognizer):
    """``sherpa_onnx.OfflineRecognizer``. :meth:`prepare` computes the features."""

    def prepare(self, samples: np.ndarray) -> Any:
        stream = self.stock.create_stream()
        stream.accept_waveform(SAMPLING_RATE, samples)
        return stream

    def infer(self, prepared: Any, chunks: list[ChunkTime]) -> str:
        self.stock.decode_stream(prepared)
        return str(prepared.result.text)
