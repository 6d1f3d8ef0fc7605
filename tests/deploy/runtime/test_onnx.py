"""onnxruntime beside sherpa-onnx on toy models: the same texts, and a fault is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import CONTEXT, write_toy_ctc, write_toy_transducer
from tests.tiny_corpus import noise

for package in ("onnx", "onnxruntime", "sherpa_onnx"):
    pytest.importorskip(package)

WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 1.3, 0.8))]


@pytest.mark.parametrize("write", [write_toy_ctc, write_toy_transducer])
@pytest.mark.parametrize("seed", [0, 1])
def test_numpy_search_is_sherpas(write: Any, seed: int, tmp_path: Path) -> None:
    folder = write(tmp_path, seed)
    ours, theirs = (open_runtime(kind, folder) for kind in ("onnxruntime", "sherpa-onnx"))
    texts = [ours.transcribe(wave) for wave in WAVES]
    assert texts == [theirs.transcribe(wave) for wave in WAVES]
    assert all(texts) and len(set(texts)) == len(texts)
    assert np.abs(theirs.features(WAVES[0]) - ours.features(WAVES[0])).max() < 1e-3


def test_a_toy_transducer_looks_at_all_its_labels(tmp_path: Path) -> None:
    """What the test above compares depends on the whole context, so a wrong order would have been seen."""
    runtime = open_runtime("onnxruntime", write_toy_transducer(tmp_path))
    outputs, state = runtime.predict(0)
    assert state == [-1] * (CONTEXT - 1) + [0]
    for label in (3, 4, 5):
        outputs, state = runtime.predict(label, state)
    assert state == [3, 4, 5]
    assert np.abs(outputs - runtime.predict(5, [0, 4, 3])[0]).max() > 0.1


def test_padding_changes_nothing(tmp_path: Path) -> None:
    runtime = open_runtime("onnxruntime", write_toy_ctc(tmp_path))
    features = [runtime.features(wave) for wave in WAVES]
    for together, one in zip(runtime.encode_batch(features), features):
        assert np.abs(together - runtime.encode(one)).max() < 1e-5


def test_an_operator_set_of_the_future_is_refused_in_one_line(tmp_path: Path) -> None:
    def future(model: Any) -> None:
        model.opset_import[0].version = 999

    folder = write_toy_ctc(tmp_path, change=future)
    for kind in ("onnxruntime", "sherpa-onnx"):
        with pytest.raises(UserError, match="onnxruntime cannot load it") as caught:
            open_runtime(kind, folder)
        assert "\n" not in str(caught.value)
