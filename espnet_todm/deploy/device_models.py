"""Models in the runtimes that they are timed in, one utterance at a time, decoded greedily.

Used inside :mod:`espnet_todm.deploy.device_worker`; a runtime is imported where it is needed, since its memory counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from espnet_todm.errors import UserError

SAMPLE_RATE = 16000
SUFFIXES = {"fp32": "", "int8": ".int8", "fp16": ".fp16"}
CTC = ("model",)
TRANSDUCER = ("encoder", "decoder", "joiner")
INSTALL = "install it with pip install 'espnet_todm[deploy]'"
MOST_SYMBOLS = 1  # of a transducer in one frame, as sherpa-onnx's greedy search takes


class Model(Protocol):
    """A model with the utterances that it is timed on."""

    def prepare(self, number: int) -> Any:
        """What is done to utterance ``number`` before the model runs: its features, where the runtime computes them."""

    def infer(self, prepared: Any) -> object:
        """From there to labels or text."""


class OnnxRuntime:
    """An exported model in onnxruntime, from features (T, F) to labels."""

    def __init__(self, folder: Path, precision: str, threads: int, inputs: Sequence[np.ndarray]) -> None:
        files = onnx_files(folder, precision)
        self.inputs = inputs
        self.sessions = [session(path, threads) for path in files]

    def prepare(self, number: int) -> np.ndarray:
        return self.inputs[number][None]

    def infer(self, prepared: np.ndarray) -> list[int]:
        lengths = np.array([prepared.shape[1]], dtype=np.int64)
        first = self.sessions[0]
        names = [entry.name for entry in first.get_inputs()]
        output, frames = first.run(None, dict(zip(names, (prepared, lengths))))
        if len(self.sessions) == 1:
            best = output[0, : int(frames[0])].argmax(-1)
            return [int(label) for label in best[np.flatnonzero(np.diff(best, prepend=-1))] if label]
        return self._transduce(output[0, : int(frames[0])])

    def _transduce(self, encoded: np.ndarray) -> list[int]:
        """encoded (T, J) -> labels, by a greedy search with a stateless decoder."""
        _, decoder, joiner = self.sessions
        context = int(decoder.get_modelmeta().custom_metadata_map["context_size"])
        history, labels = [-1] * (context - 1) + [0], []
        predicted = _run(decoder, np.array([history], dtype=np.int64))
        for frame in encoded:
            label = int(_run(joiner, frame[None], predicted)[0].argmax())
            if label:
                labels.append(label)
                history = [*history[1:], label]
                predicted = _run(decoder, np.array([history], dtype=np.int64))
        return labels


class SherpaOnnx:
    """sherpa-onnx's own recogniser, from samples (S,) to text; it computes the features itself."""

    def __init__(self, folder: Path, precision: str, threads: int, inputs: Sequence[np.ndarray]) -> None:
        sherpa_onnx = load_runtime("sherpa-onnx")
        files = [str(path) for path in onnx_files(folder, precision)]
        options = {"tokens": str(folder / "tokens.txt"), "num_threads": threads}
        if len(files) == 1:
            self.recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(model=files[0], **options)
        else:
            named = dict(zip(TRANSDUCER, files))
            self.recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(**named, **options)
        self.inputs = inputs

    def prepare(self, number: int) -> Any:
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, self.inputs[number])
        return stream

    def infer(self, prepared: Any) -> str:
        self.recognizer.decode_stream(prepared)
        return str(prepared.result.text)


class Torch:
    """The extracted model in PyTorch, from features (T, F) to text."""

    def __init__(self, folder: Path, precision: str, threads: int, inputs: Sequence[np.ndarray]) -> None:
        torch = load_runtime("torch")
        torch.set_num_threads(threads)
        from espnet_todm.deploy.decode import Decoder
        from espnet_todm.deploy.load import load_extracted

        self.decoder = Decoder(*load_extracted(folder))
        self.inputs = [torch.from_numpy(value) for value in inputs]

    def prepare(self, number: int) -> Any:
        return self.inputs[number]

    def infer(self, prepared: Any) -> str:
        return self.decoder([prepared])[0]


RUNTIMES = {"onnxruntime": OnnxRuntime, "sherpa-onnx": SherpaOnnx, "torch": Torch}


def load_runtime(name: str) -> Any:
    """Import a runtime, for torch with all that decoding with it takes. Raises UserError where it is not installed."""
    try:
        if name == "torch":
            from espnet_todm import register
            from espnet_todm.deploy import decode  # noqa: F401

            register()
        return __import__(name.replace("-", "_"))
    except ImportError as error:
        raise UserError(f"runtime: {name} cannot be imported ({error}); {INSTALL}") from None


def session(model: Any, threads: int) -> Any:
    """An onnxruntime session on the CPU, of a file or of a graph's bytes, with so many threads."""
    onnxruntime = load_runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnx_files(folder: Path, precision: str) -> list[Path]:
    """The graphs of an ONNX folder, in the order in which they run. Raises UserError where they are not all there."""
    suffix = SUFFIXES[precision]
    kinds = [[folder / f"{name}{suffix}.onnx" for name in names] for names in (CTC, TRANSDUCER)]
    for files in kinds:
        if all(path.is_file() for path in files):
            return files
    raise UserError(
        f"{folder}: holds neither {kinds[0][0].name} nor {kinds[1][0].name} with decoder and joiner; export it:"
        f" python -m espnet_todm.bin.export --format onnx {folder.parent}"
    )


def _run(graph: Any, *values: np.ndarray) -> np.ndarray:
    """First output of a graph for inputs in its own order."""
    names = [entry.name for entry in graph.get_inputs()]
    output: np.ndarray = graph.run(None, dict(zip(names, values)))[0]
    return output
