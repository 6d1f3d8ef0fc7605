"""Three runtimes behind one interface: each step the same, whoever computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.runtime.base import CtcRuntime, TransducerRuntime


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
