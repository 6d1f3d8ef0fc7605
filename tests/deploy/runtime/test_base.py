"""Three runtimes behind one interface: each step the same, whoever computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.runtime.base import RUNTIMES, CtcRuntime, TransducerRuntime, open_runtime
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import write_toy_ctc


class Rows(CtcRuntime):
    """CTC on given posteriors."""

    def encode(self, features: np.ndarray) -> np.ndarray:
        return features

    def posteriors(self, encoded: np.ndarray, path: Any = None) -> np.ndarray:
        return encoded

    def spell(self, labels: Any) -> str: ...


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)), max_size=6), st.integers(0, 2))
def test_best_path_of_ctc(written: list[tuple[int, int, int]], blanks: int) -> None:
    """Any path that writes labels: each some frames long, with blanks between, one at least between equal labels."""
    labels = [label for label, _, _ in written]
    path = [0] * blanks
    for (label, frames, after), following in zip(written, [*labels[1:], 0]):
        path += [label] * frames + [0] * max(after, label == following)
    rows = np.log(np.eye(4, dtype=np.float32)[path] * 0.9 + 0.025).reshape(-1, 4)
    assert Rows().path(rows) == path
    assert Rows().labels(path) == labels


class Counting(TransducerRuntime):
    """A transducer that writes a label in each of the next ``pace`` turns of a frame, then blanks."""

    tokens = ("blank", "a", "b")

    def __init__(self, pace: int, max_symbols: int) -> None:
        self.pace, self.max_symbols = pace, max_symbols

    def encode(self, features: np.ndarray) -> np.ndarray:
        return np.arange(len(features), dtype=np.float32)[:, None]

    def predict(self, label: int, state: Any = None) -> tuple[Any, Any]:
        written = 0 if state is None else state + 1
        return written, written

    def join(self, frame: np.ndarray, predicted: int) -> np.ndarray:
        more = predicted < (frame[0] + 1) * self.pace
        return np.log(np.array([0.1, 0.8, 0.1] if more else [0.8, 0.1, 0.1], dtype=np.float32))

    def spell(self, labels: Any) -> str:
        return "".join(self.tokens[i] for i in labels)


@pytest.mark.parametrize(("pace", "most", "labels"), [(1, 1, 4), (2, 1, 4), (2, 5, 8), (3, 2, 8), (0, 3, 0)])
def test_greedy_search_of_a_transducer_bounds_labels_in_a_frame(pace: int, most: int, labels: int) -> None:
    runtime = Counting(pace, most)
    features = np.zeros((4, 1))
    assert runtime.text(features) == "a" * labels
    encoded = runtime.encode(features)
    path, posteriors = runtime.path(encoded), runtime.posteriors(encoded)
    assert posteriors.shape == (len(path), 3) and np.allclose(np.exp(posteriors).sum(axis=-1), 1)
    assert np.array_equal(runtime.posteriors(encoded, path[:2]), posteriors[:2])
    assert runtime.posteriors(encoded[:0]).shape == (0, 3)


def test_faults_are_told_in_words(tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("tensorflow", tmp_path), "'tensorflow' is unknown; allowed: torch, onnxruntime, sherpa-onnx"),
        (("torch", tmp_path, "int8"), "'int8' is not for torch"),
        (("torch", tmp_path, "fp32", 0), "threads: 0"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words):
            open_runtime(*arguments)
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    folder = write_toy_ctc(tmp_path / "toy")
    for kind in RUNTIMES[1:]:
        with pytest.raises(UserError, match="no such folder"):
            open_runtime(kind, tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"model.int8.onnx: no such file; the folder has precision: fp32"):
            open_runtime(kind, folder, "int8")
        with pytest.raises(UserError, match="precision: 'int4' is unknown"):
            open_runtime(kind, folder, "int4")
    with pytest.raises(UserError, match="does not run on x") as caught:
        open_runtime("onnxruntime", folder).encode(np.zeros((3, 79), dtype=np.float32))
    assert "\n" not in str(caught.value)
