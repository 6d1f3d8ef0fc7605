"""What streaming formats share: one chunk per run of the encoder's graph, for sherpa-onnx's ``OnlineRecognizer``.

A chunk is computed when all its frames have arrived. So the end of an utterance, or all of an utterance shorter than a
chunk, is recognised only if silence (the tail) follows. The runtimes here add the tail. Users of sherpa-onnx must add it
before ``input_finished``, see docs/streaming.md.
"""

from __future__ import annotations

import copy
import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Callable, Optional, cast

import numpy as np

from espnet_todm.deploy.forms.base import Form, Graph, Named
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.deploy.runtime.base import ChunkTime, StepRuntime
from espnet_todm.deploy.runtime.chunks import run_chunks, stream_features, tail_seconds, with_tail
from espnet_todm.deploy.runtime.fbank import device_fbank
from espnet_todm.deploy.runtime.onnx import OnnxRuntime, Session
from espnet_todm.deploy.runtime.recognizer import Recognizer
from espnet_todm.util.acoustics import FRAME_SAMPLES, FRAMES_PER_SECOND, SAMPLING_RATE

if TYPE_CHECKING:
    from espnet_todm.deploy.onnx.streaming import StreamingGraph

MASKED, STREAMED = "PyTorch under the chunks' mask", "PyTorch chunk by chunk"
ALONE, FULL = f"{MASKED}, without the tail", "PyTorch, full context"
ChunkSearch = Callable[[np.ndarray], Sequence[int]]


class ChunkedOnnx(OnnxRuntime):
    """A runtime whose first graph takes a chunk's features and caches, and gives the chunk's output and new caches."""

    pads = False  # all chunks have the same length

    def __init__(self, graphs: Mapping[str, Session], tokens: Sequence[str]) -> None:
        super().__init__(graphs, tokens)
        about = self._first.metadata
        self.window, self.shift = int(about["T"]), int(about["decode_chunk_len"])
        self.chunk = int(about["todm_chunk_frames"]), int(about["todm_left_frames"])
        self.chunk_seconds = self.shift / FRAMES_PER_SECOND
        self.tail_seconds = tail_seconds(self.window)
        self.details = {"shift": self.shift, "tail_seconds": self.tail_seconds}

    def initial(self) -> list[np.ndarray]:
        """Zero caches of one stream before its first chunk. The batch axis is the one without a fixed size."""
        return [
            np.zeros(
                [n if isinstance(n, int) else 1 for n in value.shape], np.int64 if "int64" in value.type else np.float32
            )
            for value in self._first.inputs[1:]
        ]

    def features(self, samples: np.ndarray) -> np.ndarray:
        return stream_features(samples, self.mel_bins, self.window, self.shift)

    def device_features(self, samples: np.ndarray) -> np.ndarray:
        return stream_features(samples, self.mel_bins, self.window, self.shift, device_fbank)

    def encode(self, features: np.ndarray) -> np.ndarray:
        return run_chunks(self.step, self.initial(), features, self.window, self.shift)

    def step(self, features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        """Run one chunk, see :data:`ChunkStep`."""
        output, *after = self._first(features, *caches)
        return output, after

    @abstractmethod
    def best(self) -> ChunkSearch:
        """Greedy search of one utterance: a function of a chunk's output (C, D) that returns its path (C,)."""

    def infer(self, prepared: np.ndarray, chunks: list[ChunkTime]) -> list[int]:
        """The path of greedy search, by chunks."""
        search, heard = self.best(), False

        def timed(features: np.ndarray, caches: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
            nonlocal heard
            start = time.perf_counter()
            output, after = self.step(features, caches)
            path = search(output[0])
            seconds = time.perf_counter() - start
            heard = heard or any(label != self.blank for label in path)
            chunks.append(ChunkTime(seconds, heard))
            return np.array([path]), after

        return cast("list[int]", run_chunks(timed, self.initial(), prepared, self.window, self.shift).tolist())


class OnlineRecognizer(Recognizer):
    """sherpa-onnx's online recognizer, used as docs/streaming.md describes. It gets an utterance in pieces of ``shift``
    feature frames, as from a microphone, followed by the model's tail of silence.

    shift: feature frames from chunk to chunk.
    """

    def __init__(self, stock: Any, shift: int, tail_seconds: float) -> None:
        super().__init__(stock)
        self.piece, self.tail_seconds = shift * FRAME_SAMPLES, tail_seconds
        self.chunk_seconds = shift / FRAMES_PER_SECOND

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        return with_tail(samples, self.tail_seconds)

    def infer(self, prepared: np.ndarray, chunks: list[ChunkTime]) -> str:
        """The time of a chunk is from the handover of its last samples to its text, features included."""
        stream = self.stock.create_stream()
        for begin in range(0, len(prepared), self.piece):
            start = time.perf_counter()
            stream.accept_waveform(SAMPLING_RATE, prepared[begin : begin + self.piece])
            self._decode(stream, start, chunks)
        start = time.perf_counter()
        stream.input_finished()
        self._decode(stream, start, chunks)
        return str(self.stock.get_result(stream))

    def _decode(self, stream: Any, start: float, chunks: list[ChunkTime]) -> None:
        while self.stock.is_ready(stream):
            self.stock.decode_stream(stream)
            text = self.stock.get_result(stream)
            chunks.append(ChunkTime(time.perf_counter() - start, bool(text)))
            start = time.perf_counter()


class StreamingForm(Form):
    """For models whose encoder can run in chunks. The parity gate compares the export with the model on whole utterances
    under the mask of the same chunks."""

    format = STREAMING_FOLDER
    about = "the same model for sherpa-onnx's online recognizer"
    trained_name = MASKED
    in_chunks = True

    def recognises(self, metadata: Mapping[str, str]) -> bool:
        return "decode_chunk_len" in metadata

    def recognizer(self, arguments: Mapping[str, Any], **details: Any) -> Recognizer:
        return OnlineRecognizer(self.stock.recognizer(arguments), **details)

    def chunk_graph(self, module: StreamingGraph, output: str, about: Mapping[str, Any]) -> Graph:
        """The first graph. output: name of its first output; about: metadata besides those of the chunks and the caches."""
        from espnet_todm.deploy.onnx.graph import subsampling_factor
        from espnet_todm.deploy.onnx.streaming import CACHES, example_inputs

        inputs, outputs = {"x": {0: "N"}}, {output: {0: "N"}}
        for name in CACHES:
            axis = 0 if name.startswith(("conv", "embed", "processed")) else 1
            inputs[name], outputs[f"new_{name}"] = {axis: "N"}, {axis: "N"}
        tail = tail_seconds(module.encoder.window)
        metadata = {
            **module.metadata(),
            **about,
            "subsampling_factor": subsampling_factor(module.encoder.encoder),
            "todm_chunk_frames": module.encoder.chunk.frames,
            "todm_left_frames": module.encoder.chunk.left,
            "todm_tail_seconds": tail,
        }
        logging.info(
            "streaming-onnx: give sherpa-onnx %g s of silence after each utterance, before input_finished: what makes no"
            " whole chunk it does not hear",
            tail,
        )
        return Graph(self.parts[0], module, example_inputs(module), inputs, outputs, metadata)

    def card(self, graphs: Sequence[Graph]) -> dict[str, Any]:
        stream = cast(Any, graphs[0].module).encoder
        seconds, tail = stream.shift / FRAMES_PER_SECOND, tail_seconds(stream.window)
        return {"streaming": {**asdict(stream.chunk), "chunk_seconds": seconds, "tail_seconds": tail}}

    def notes(self, card: Mapping[str, Any]) -> Sequence[str]:
        told = card.get("streaming")
        if not told:
            return ()
        text = (
            f"## Streaming\n\n`{self.format}` takes chunks of {told['chunk_seconds']:g} s. After each utterance give"
            f" sherpa-onnx {told['tail_seconds']:g} s of silence, and only then `input_finished`: what makes no whole chunk"
            " it does not hear.\n"
        )
        return (text,)

    def trained(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> StepRuntime:
        from espnet_todm.deploy.runtime.streaming_torch import masked_runtime

        stream = cast(ChunkedOnnx, exported)
        return masked_runtime(_in_context(model, stream.chunk), config, threads, stream.window, stream.shift)

    def equal(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        from espnet_todm.deploy.runtime.streaming_torch import streaming_runtime

        return [(STREAMED, streaming_runtime(model, config, threads, cast(ChunkedOnnx, exported).chunk))]

    def told(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        """The model on utterances without the tail, as in training: under the mask, and with full context."""
        from espnet_todm.deploy.runtime.torch import torch_runtime

        contexts = {ALONE: cast(ChunkedOnnx, exported).chunk, FULL: None}
        return [(name, torch_runtime(_in_context(model, chunk), config, threads)) for name, chunk in contexts.items()]


def _in_context(model: Any, chunk: Optional[tuple[int, int]]) -> Any:
    """A copy of a model that runs whole utterances under the mask of such chunks, or with full context."""
    from espnet_todm.encoders.chunks import Chunk

    masked = copy.deepcopy(model)
    masked.encoder.decode_in(None if chunk is None else Chunk(*chunk))
    return masked
