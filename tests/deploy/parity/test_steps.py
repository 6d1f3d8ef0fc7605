"""What a runtime is asked for by the gate: every step, and its encoder once."""

from __future__ import annotations

import numpy as np

from espnet_todm.deploy.parity.steps import hear
from tests.deploy.runtime.test_base import Counting

FEATURES = [np.zeros((frames, 1), dtype=np.float32) for frames in (4, 2)]


def test_each_encoder_runs_once_for_an_utterance() -> None:
    lengths = []

    class Watched(Counting):
        def encode(self, features: np.ndarray) -> np.ndarray:
            lengths.append(len(features))
            return super().encode(features)

    heard = hear("watched", Watched(1, 2), FEATURES)
    assert lengths == [4, 2] and [len(one) for one in heard.encoded] == [4, 2]
    assert heard.texts == ["aaaa", "aa"] and [len(path) for path in heard.paths] == [8, 4]


def test_posteriors_are_along_another_path_and_texts_are_not() -> None:
    paths = [[1, 0, 0], [0]]
    heard = hear("one", Counting(1, 2), FEATURES, paths)
    assert heard.paths is paths and [rows.shape for rows in heard.posteriors] == [(3, 3), (1, 3)]
    assert heard.texts == ["aaaa", "aa"]
