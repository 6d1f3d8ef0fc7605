"""What runs a model: PyTorch, onnxruntime or sherpa-onnx, behind one interface, one utterance at a time and greedily.

``open_runtime("torch", subnet_folder)``, ``open_runtime("onnxruntime", onnx_folder, "int8", threads=2)`` and
``open_runtime("sherpa-onnx", onnx_folder)`` of :mod:`espnet_todm.deploy.runtime.opening` give a :class:`Runtime`. The first
two also show each step between speech and text (:class:`StepRuntime`), so that a difference can be traced to its beginning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, Optional, Protocol

import numpy as np

from espnet_todm.deploy.runtime.fbank import fbank

TORCH, ONNXRUNTIME, SHERPA = "torch", "onnxruntime", "sherpa-onnx"
RUNTIMES = (TORCH, ONNXRUNTIME, SHERPA)
# Labels in one frame at most: sherpa-onnx's limit for stateless predictors, and one for recurrent ones.
STATELESS_SYMBOLS, RECURRENT_SYMBOLS = 1, 10


class Runtime(ABC):
    """A model that writes down speech of 16 kHz.

    Attributes: ``kind``, one of RUNTIMES; ``mel_bins`` of its features.
    """

    kind: ClassVar[str]
    mel_bins: int

    def features(self, samples: np.ndarray) -> np.ndarray:
        """samples (N,) float32 in [-1, 1] -> what the model is given, (T, mel_bins) float32, without normalisation."""
        return fbank(samples, self.mel_bins)

    @abstractmethod
    def transcribe(self, samples: np.ndarray) -> str:
        """samples (N,) float32 in [-1, 1] -> text, the whole way: features, model, greedy search."""


class Timed(Protocol):
    """A model as the benchmark times it: what is done to an utterance before the model runs apart from the model.

    ``chunk_seconds``: of speech that a streaming model takes at a time; 0 for whole utterances.
    """

    chunk_seconds: float

    def prepare(self, utterance: np.ndarray) -> Any:
        """Features (T, F), or samples (N,) where the runtime computes features -> what the model is given."""

    def infer(self, prepared: Any, chunks: list[float]) -> object:
        """From there to labels or text. ``chunks`` gets the seconds that each chunk took, of a streaming model."""


class StepRuntime(Runtime):
    """A runtime whose steps can be looked at, each from what the step before gave; the encoder runs in the first.

    ``tokens`` are by their ids; ``blank`` is one of these. ``shows_encoder``: False where the encoder's output cannot be
    seen, because one graph goes from features to log posteriors.
    """

    tokens: Sequence[str]
    blank: int = 0
    shows_encoder: ClassVar[bool] = True
    chunk_seconds: float = 0.0  # see :class:`Timed`

    @abstractmethod
    def encode(self, features: np.ndarray) -> np.ndarray:
        """Features (T, mel_bins) -> the encoder's output (T', D) float32, of transducers projected for the joiner; log
        posteriors (T', V) where it is not shown."""

    @abstractmethod
    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        """Log posteriors (T', V), float32. Tokens that are no text are next to impossible.

        Of a transducer the rows are the joiner's outputs along ``path``, by default what :meth:`path` finds.
        """

    @abstractmethod
    def path(self, encoded: np.ndarray) -> list[int]:
        """What greedy search takes: the best label, or the blank, of each row of the posteriors."""

    @abstractmethod
    def labels(self, path: Sequence[int]) -> list[int]:
        """The labels of a path."""

    @abstractmethod
    def spell(self, labels: Sequence[int]) -> str:
        """What labels say, with single spaces between words."""

    def text(self, features: np.ndarray) -> str:
        """What greedy search finds on features (T, mel_bins)."""
        return self.spell(self.labels(self.path(self.encode(features))))

    def transcribe(self, samples: np.ndarray) -> str:
        return self.text(self.features(samples))

    def prepare(self, utterance: np.ndarray) -> np.ndarray:
        return utterance

    def infer(self, prepared: np.ndarray, chunks: list[float]) -> list[int]:
        return self.labels(self.path(self.encode(prepared)))


class CtcRuntime(StepRuntime):
    """The best path of CTC: repeats count once, blanks are left out."""

    def path(self, encoded: np.ndarray) -> list[int]:
        return [int(label) for label in self.posteriors(encoded).argmax(axis=-1)]

    def labels(self, path: Sequence[int]) -> list[int]:
        return [label for label, _ in groupby(path) if label != self.blank]


class TransducerRuntime(StepRuntime):
    """Greedy search of a transducer: in each frame the best label, up to ``max_symbols`` times, until it is the blank.

    States are whatever the predictor carries from label to label.
    """

    max_symbols: int = STATELESS_SYMBOLS

    @abstractmethod
    def predict(self, label: int, state: Any = None) -> tuple[Any, Any]:
        """A label (at first the blank, without a state) -> the predictor's output and state after it."""

    @abstractmethod
    def join(self, frame: np.ndarray, predicted: Any) -> np.ndarray:
        """A frame of the encoder (D,) and the predictor's output -> logits (V,) float32."""

    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        # Imported here, since no search needs it, and its memory would count as that of a model that is measured.
        from scipy.special import log_softmax

        rows = [logits for logits, _ in self._walk(encoded, path)]
        return log_softmax(np.reshape(rows, (-1, len(self.tokens))).astype(np.float32), axis=-1)

    def path(self, encoded: np.ndarray) -> list[int]:
        return [label for _, label in self._walk(encoded)]

    def labels(self, path: Sequence[int]) -> list[int]:
        return [label for label in path if label != self.blank]

    def _walk(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> Iterator[tuple[np.ndarray, int]]:
        """Logits (V,) and the label taken: the best one, or the next of ``path``, until that ends."""
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
