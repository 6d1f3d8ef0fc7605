"""The interface of the runtimes PyTorch, onnxruntime and sherpa-onnx: one utterance at a time, with greedy search.

``open_runtime("torch", subnet_folder)``, ``open_runtime("onnxruntime", onnx_folder, "int8", threads=2)`` and
``open_runtime("sherpa-onnx", onnx_folder)`` of :mod:`espnet_todm.deploy.runtime.opening` return a :class:`Runtime`. The
first two also give access to each step between speech and text (:class:`StepRuntime`), to find where a difference begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, Optional, Protocol

import numpy as np

from espnet_todm.deploy.runtime.fbank import fbank

TORCH, ONNXRUNTIME, SHERPA = "torch", "onnxruntime", "sherpa-onnx"
RUNTIMES = (TORCH, ONNXRUNTIME, SHERPA)
# Maximum number of labels per frame: sherpa-onnx's for stateless predictors, and ours for recurrent ones.
STATELESS_SYMBOLS, RECURRENT_SYMBOLS = 1, 10


class Runtime(ABC):
    """A loaded model that transcribes speech at 16 kHz.

    Attributes: ``kind``, one of RUNTIMES; ``mel_bins``, dimension of the features.
    """

    kind: ClassVar[str]
    mel_bins: int

    def features(self, samples: np.ndarray) -> np.ndarray:
        """samples (N,) float32 in [-1, 1] -> features (T, mel_bins) float32 for the model, without normalisation."""
        return fbank(samples, self.mel_bins)

    @abstractmethod
    def transcribe(self, samples: np.ndarray) -> str:
        """samples (N,) float32 in [-1, 1] -> text, by features, model and greedy search."""


class ChunkTime(NamedTuple):
    """Wall-clock seconds that one chunk of an utterance took, and whether text was found in it or before it."""

    seconds: float
    heard: bool


class Timed(Protocol):
    """The interface for benchmarks, which time the preparation of an utterance and the model separately.

    ``chunk_seconds``: seconds of speech from chunk to chunk of a streaming model. ``tail_seconds``: of the silence that it
    needs after an utterance. Both are 0 for models of whole utterances.
    """

    chunk_seconds: float
    tail_seconds: float

    def prepare(self, utterance: np.ndarray) -> Any:
        """Features (T, F), or samples (N,) if the runtime computes features -> input of :meth:`infer`."""

    def infer(self, prepared: Any, chunks: list[ChunkTime]) -> object:
        """Output of :meth:`prepare` -> labels or text. A streaming model appends the time of each chunk to ``chunks``."""


class StepRuntime(Runtime):
    """A runtime with separate steps. Each takes the output of the step before; the first, ``encode``, runs the encoder.

    ``tokens``: in the order of ids. ``blank``: an id. ``shows_encoder``: False if the encoder's output is not available,
    because one graph goes from features to log posteriors.
    """

    tokens: Sequence[str]
    blank: int = 0
    shows_encoder: ClassVar[bool] = True
    chunk_seconds: float = 0.0  # see :class:`Timed`
    tail_seconds: float = 0.0

    @abstractmethod
    def encode(self, features: np.ndarray) -> np.ndarray:
        """Features (T, mel_bins) -> encoder output (T', D) float32, for transducers after the joiner's projection. Without
        ``shows_encoder``: log posteriors (T', V)."""

    @abstractmethod
    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        """Log posteriors (T', V), float32. Tokens that are not text have almost no probability.

        The rows of a transducer are the joiner's outputs along ``path``, by default the result of :meth:`path`.
        """

    @abstractmethod
    def path(self, encoded: np.ndarray) -> list[int]:
        """The path of greedy search: the best label or the blank for each row of the posteriors."""

    @abstractmethod
    def labels(self, path: Sequence[int]) -> list[int]:
        """The labels of a path."""

    @abstractmethod
    def spell(self, labels: Sequence[int]) -> str:
        """The text of labels, with single spaces between words."""

    def text(self, features: np.ndarray) -> str:
        """The text that greedy search finds for features (T, mel_bins)."""
        return self.spell(self.labels(self.path(self.encode(features))))

    def transcribe(self, samples: np.ndarray) -> str:
        return self.text(self.features(samples))

    def prepare(self, utterance: np.ndarray) -> np.ndarray:
        return utterance

    def infer(self, prepared: np.ndarray, chunks: list[ChunkTime]) -> list[int]:
        return self.labels(self.path(self.encode(prepared)))


class CtcRuntime(StepRuntime):
    """Greedy search of CTC: the best path without repetitions and blanks."""

    def path(self, encoded: np.ndarray) -> list[int]:
        return [int(label) for label in self.posteriors(encoded).argmax(axis=-1)]

    def labels(self, path: Sequence[int]) -> list[int]:
        return [label for label, _ in groupby(path) if label != self.blank]


class TransducerRuntime(StepRuntime):
    """Greedy search of a transducer: at most ``max_symbols`` labels per frame, until the best one is the blank.

    The type of the predictor's state depends on the runtime.
    """

    max_symbols: int = STATELESS_SYMBOLS

    @abstractmethod
    def predict(self, label: int, state: Any = None) -> tuple[Any, Any]:
        """A label and the state before it -> predictor output, new state. The first label is the blank, without a state."""

    @abstractmethod
    def join(self, frame: np.ndarray, predicted: Any) -> np.ndarray:
        """An encoder frame (D,) and a predictor output -> logits (V,) float32."""

    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        # Local import: searches do not need it, and measurements of a model's memory would include it.
        from scipy.special import log_softmax

        rows = [logits for logits, _ in self._walk(encoded, path)]
        return log_softmax(np.reshape(rows, (-1, len(self.tokens))).astype(np.float32), axis=-1)

    def path(self, encoded: np.ndarray) -> list[int]:
        return [label for _, label in self._walk(encoded)]

    def labels(self, path: Sequence[int]) -> list[int]:
        return [label for label in path if label != self.blank]

    def _walk(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> Iterator[tuple[np.ndarray, int]]:
        """Yield logits (V,) and the chosen label: the best one, or the next one of ``path`` until its end."""
        given = None if path is None else iter(path)
        predicted, state = self.predict(self.blank)
        for frame in encoded:
            for _ in range(self.max_symbols):
                logits = self.join(frame, predicted)
                label = int(logits.argmax()) if given is None else next(given, None)
                if label is None:
                    return
                yield logits, label
                if label == self.blank:
                    break
                predicted, state = self.predict(label, state)
