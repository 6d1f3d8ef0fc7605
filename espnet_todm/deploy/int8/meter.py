"""Measurements of int8 files on speech against the float32 files: error of the posteriors, word error rate, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from espnet_todm.deploy.forms.registry import open_exported
from espnet_todm.deploy.int8.files import Int8Files
from espnet_todm.deploy.int8.layers import Layer, WatchedSession
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.onnx import OnnxRuntime, Session
from espnet_todm.scoring.scores import score_tables
from espnet_todm.util.evenly import evenly

PROBED = 20  # number of utterances for errors of posteriors and ranges of activations: these need less speech than WER


class Meter:
    """Compares quantized graphs with the float32 graphs of the same folder, in onnxruntime with greedy search.

    Attributes: ``wer``, the float32 model's word error rate in percent; ``seconds``, the time it took; ``words`` of the
    references.
    """

    def __init__(self, files: Int8Files, speech: Sequence[Speech]) -> None:
        self.files = files
        self._form, self._exact = open_exported(files.folder)
        self._references = {one.name: one.text for one in speech}
        self._features = [self._exact.features(one.samples) for one in speech]
        self._device_features = [self._exact.device_features(one.samples) for one in speech]
        self._probes = [*evenly(self._features, PROBED)]
        encoded = [self._exact.encode(one) for one in self._probes]
        self._paths = [self._exact.path(one) for one in encoded]
        self._expected = [self._exact.posteriors(*one) for one in zip(encoded, self._paths)]
        self.words = sum(len(one.text.split()) for one in speech)
        self.wer, self.seconds = self.rate(self._exact)

    def runtime(self, parts: Sequence[str]) -> OnnxRuntime:
        """The model with the int8 files of these parts, and the float32 files of the others."""
        return self._with({part: Session(self.files.path(part), 1) for part in parts})

    def error(self, runtime: OnnxRuntime) -> float:
        """Mean Kullback-Leibler divergence of the posteriors of a frame from float32's, in nats. The posteriors of a
        transducer are along the float32 model's paths. Infinite if there are values that are no numbers."""
        total, frames = 0.0, 0
        for features, path, expected in zip(self._probes, self._paths, self._expected):
            found = runtime.posteriors(runtime.encode(features), path)
            total += float((np.exp(expected) * (expected - found)).sum())
            frames += len(expected)
        return max(total / max(frames, 1), 0.0) if np.isfinite(total) else np.inf

    def rate(self, runtime: OnnxRuntime) -> tuple[float, float]:
        """Word error rate in percent on all speech, and the seconds that the model and greedy search took."""
        start = time.perf_counter()
        texts = [runtime.text(one) for one in self._features]
        return self._score(texts), time.perf_counter() - start

    def device_rate(self, runtime: OnnxRuntime) -> float:
        """As :meth:`rate`, with features as sherpa-onnx computes them. In int8, their last digits can change words."""
        return self._score([runtime.text(one) for one in self._device_features])

    def _score(self, texts: Sequence[str]) -> float:
        return score_tables(self._references, dict(zip(self._references, texts)), "int8").total().error_rate

    def watch(self, layers: Sequence[Layer]) -> dict[str, WatchedSession]:
        """Run the float32 model, and collect the activations that these layers take: part -> session."""
        tensors: dict[str, list[str]] = {}
        for layer in layers:
            tensors.setdefault(layer.part, []).append(layer.input)
        sessions = {part: WatchedSession(self.files.exact(part), names) for part, names in tensors.items()}
        runtime = self._with(sessions)
        for features in self._probes:
            runtime.path(runtime.encode(features))
        return sessions

    def _with(self, sessions: Mapping[str, Session]) -> OnnxRuntime:
        return self._form.runtime({**self._exact.graphs, **sessions}, self._exact.tokens)
