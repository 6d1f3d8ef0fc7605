"""Streaming models in PyTorch: chunk by chunk, and on whole utterances under the chunk mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_todm.deploy.onnx.streaming import StreamingGraph, streaming_ctc, streaming_transducer
from espnet_todm.deploy.runtime.chunks import run_chunks, stream_features
from espnet_todm.deploy.runtime.torch import TorchCtc, TorchRuntime, TorchTransducer
from espnet_todm.util.threads import torch_threads


class _Masked(TorchRuntime):
    """An extracted model on whole utterances under the mask of its ``decode_chunk``, with the tail of streaming.

    window, shift: feature frames of a chunk, and from one chunk to the next.
    """

    def __init__(self, model: ESPnetASRModel, config: Mapping[str, Any], threads: int, window: int, shift: int) -> None:
        super().__init__(model, config, threads)
        self.window, self.shift = window, shift

    def features(self, samples: np.ndarray) -> np.ndarray:
        return stream_features(samples, self.mel_bins, self.window, self.shift)


class MaskedCtc(_Masked, TorchCtc):
    """A CTC model under the mask."""


class MaskedTransducer(_Masked, TorchTransducer):
    """A transducer under the mask."""


def masked_runtime(
    model: ESPnetASRModel, config: Mapping[str, Any], threads: int, window: int, shift: int
) -> TorchRuntime:
    """The runtime of a model under the mask of its ``decode_chunk``."""
    kind = MaskedTransducer if model.use_transducer_decoder else MaskedCtc
    return kind(model, config, threads, window, shift)


class _Streaming(TorchRuntime):
    """An extracted model run chunk by chunk. ``chunk``: frames and left context, default the model's ``decode_chunk``."""

    make: Callable[..., StreamingGraph]

    def __init__(
        self,
        model: ESPnetASRModel,
        config: Mapping[str, Any],
        threads: int = 1,
        chunk: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__(model, config, threads)
        self.module = type(self).make(model, chunk)

    def features(self, samples: np.ndarray) -> np.ndarray:
        return stream_features(samples, self.mel_bins, self.module.encoder.window, self.module.encoder.shift)

    def encode(self, features: np.ndarray) -> np.ndarray:
        with torch_threads(self.threads):
            stream = self.module.encoder
            return run_chunks(self._step, self.module.initial(1), features, stream.window, stream.shift)

    @torch.no_grad()
    def _step(self, features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        output, *after = self.module(torch.from_numpy(features), *caches)
        return output.numpy(), after


class StreamingCtc(_Streaming, TorchCtc):
    """A CTC model chunk by chunk."""

    make = staticmethod(streaming_ctc)
    shows_encoder = False

    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        return encoded


class StreamingTransducer(_Streaming, TorchTransducer):
    """A transducer whose encoder runs chunk by chunk."""

    make = staticmethod(streaming_transducer)


def streaming_runtime(
    model: ESPnetASRModel, config: Mapping[str, Any], threads: int = 1, chunk: Optional[Sequence[int]] = None
) -> TorchRuntime:
    """The runtime of a model chunk by chunk."""
    kind = StreamingTransducer if model.use_transducer_decoder else StreamingCtc
    return kind(model, config, threads, chunk)
