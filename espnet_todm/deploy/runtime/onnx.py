"""onnxruntime as a runtime: runs the graphs of an exported folder, with greedy search in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from espnet_todm.deploy.onnx.folder import TOKENS, join_tokens
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, StepRuntime
from espnet_todm.deploy.runtime.fbank import device_fbank
from espnet_todm.errors import UserError, one_line
from espnet_todm.util.acoustics import MEL_BINS
from espnet_todm.util.optional import needed

_INTEGERS = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


class Session:
    """One ONNX file in an onnxruntime session. Inputs and outputs are positional, as in sherpa-onnx.

    Raises UserError when the file cannot be loaded, for example because the runtime lacks its operator set.
    """

    def __init__(self, path: Path, threads: int) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's error classes have no other common base
            raise UserError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from None
        self.path = path
        self.inputs, self.outputs = self._session.get_inputs(), self._session.get_outputs()
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, *values: np.ndarray) -> list[np.ndarray]:
        """Outputs for these inputs. Integers are converted to the graph's integer dtype.

        Raises UserError when the graph does not accept them.
        """
        feed = {i.name: v.astype(_INTEGERS.get(i.type, v.dtype), copy=False) for i, v in zip(self.inputs, values)}
        try:
            return list(self._session.run(None, feed))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
            raise UserError(f"{self.path}: does not run on {shapes} ({one_line(error)})") from None


class OnnxRuntime(StepRuntime):
    """Base class for all export formats: graphs by part, of which the first takes features (N, T, F) and lengths (N,), and
    tokens in the order of ids.

    Attributes:
        pads: whether utterances of a batch are padded to the longest one.
        details: arguments of the :class:`Recognizer` in addition to those of sherpa-onnx.
    """

    kind = ONNXRUNTIME
    pads: ClassVar[bool] = True

    def __init__(self, graphs: Mapping[str, Session], tokens: Sequence[str]) -> None:
        self.graphs, self.tokens = graphs, tokens
        self._first = next(iter(graphs.values()))
        size = self._first.inputs[0].shape[2]
        self.mel_bins = size if isinstance(size, int) else MEL_BINS
        self.details: dict[str, Any] = {}

    def check_outputs(self, graph: Session) -> None:
        """Raises UserError when a graph's output width is not the number of tokens. sherpa-onnx does not check this."""
        width = graph.outputs[0].shape[-1]
        self.check_vocabulary(width if isinstance(width, int) else None, f"{graph.path.name} has as outputs:")

    def check_vocabulary(self, size: Any, source: str) -> None:
        """Raises UserError when ``size``, unless None, is not the number of tokens in tokens.txt."""
        if size is not None and str(size) != str(len(self.tokens)):
            place = self._first.path.parent / TOKENS
            raise UserError(f"{place}: has {len(self.tokens)} tokens, but {source} {size}")

    def device_features(self, samples: np.ndarray) -> np.ndarray:
        """As :meth:`features`, but computed as in sherpa-onnx."""
        return device_fbank(samples, self.mel_bins)

    def spell(self, labels: Sequence[int]) -> str:
        return join_tokens([self.tokens[i] for i in labels])

    def encode(self, features: np.ndarray) -> np.ndarray:
        return self.encode_batch([features])[0]

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (T, F) of each utterance -> the first graph's outputs (T', D), computed in one padded batch."""
        outputs, frames = self._first(*_padded(batch))[:2]
        return [output[:count] for output, count in zip(outputs, frames.tolist())]


def _padded(batch: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, F) of each utterance -> zero-padded (N, T, F) float32, and lengths (N,)."""
    lengths = np.array([len(features) for features in batch])
    padded = np.zeros((len(batch), lengths.max(), batch[0].shape[-1]), dtype=np.float32)
    for row, features in zip(padded, batch):
        row[: len(features)] = features
    return padded, lengths
