"""Three runtimes behind one interface: each step the same, whoever computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.decoding.decode import Decoder
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.load import load_extracted
from espnet_todm.deploy.runtime.base import RUNTIMES, CtcRuntime, TransducerRuntime, open_runtime
from espnet_todm.deploy.runtime.torch import TorchTransducer, open_slice
from espnet_todm.errors import UserError
from tests.deploy.conftest import TRANSDUCER, write_experiment
from tests.deploy.toy_onnx import CONTEXT, write_toy_ctc, write_toy_transducer
from tests.tiny_corpus import noise

WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 1.3, 0.8))]
FEATURES = [np.random.default_rng(seed).normal(size=(60 + 9 * seed, 20)).astype(np.float32) for seed in range(3)]


def needs_onnx() -> None:
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)


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


def extracted(experiment: Path, size: str, output: Path) -> Path:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), output)
    return output


@pytest.fixture(scope="module")
def quiet_transducer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained transducer's subnet whose joiner does not favour tokens that are no text, nor the blank."""
    import torch
    import yaml

    folder = write_experiment(tmp_path_factory.mktemp("quiet"), changes=TRANSDUCER, conv_norm="layer_norm")
    state = torch.load(folder / "model.pth", weights_only=True)
    tokens = yaml.safe_load((folder / "config.yaml").read_text())["token_list"]
    state["joint_network.lin_out.weight"] *= 5
    for token in ("<unk>", "<sos/eos>"):
        state["joint_network.lin_out.bias"][tokens.index(token)] = -100.0
    torch.save(state, folder / "model.pth")
    return extracted(folder, "small", folder / "small")


def test_torch_writes_what_the_recipe_decodes(quiet_transducer: Path) -> None:
    """One label a frame, as ESPnet's greedy search."""
    import torch

    runtime = open_runtime("torch", quiet_transducer)
    assert isinstance(runtime, TorchTransducer)
    decoder = Decoder(*load_extracted(quiet_transducer))
    texts = [runtime.text(features) for features in FEATURES]
    assert texts == [" ".join(decoder([torch.tensor(features)])[0].split()) for features in FEATURES]
    assert len(set(texts)) > 1


def test_slice_and_extracted_model_are_the_same(experiment: Path, tmp_path: Path) -> None:
    """Also of a subnet that is no named size: its card says what it is."""
    folder = extracted(experiment, "uneven", tmp_path / "uneven")
    small = open_runtime("torch", folder)
    for subnet in ("uneven", str(folder / "card.json")):
        whole = open_slice(experiment / "config.yaml", experiment / "model.pth", subnet)
        for features in FEATURES:
            one, other = small.encode(features), whole.encode(features)
            assert np.abs(one - other).max() < 1e-5
            assert np.abs(small.posteriors(one) - whole.posteriors(other)).max() < 1e-5
    other = open_slice(experiment / "config.yaml", experiment / "model.pth", "small")
    assert np.abs(small.encode(FEATURES[0]) - other.encode(FEATURES[0])).max() > 1e-2


def test_features_stay_as_they_are(experiment: Path, tmp_path: Path) -> None:
    """ESPnet normalises in place: what a runtime is given may be another's input too."""
    runtime = open_runtime("torch", extracted(experiment, "small", tmp_path / "small"))
    before = FEATURES[0].copy()
    first = runtime.encode(FEATURES[0])
    assert np.array_equal(FEATURES[0], before)
    assert np.array_equal(runtime.encode(FEATURES[0]), first)


def test_torch_never_writes_what_is_no_text(experiment: Path, tmp_path: Path) -> None:
    runtime = open_runtime("torch", extracted(experiment, "small", tmp_path / "small"))
    probabilities = np.exp(runtime.posteriors(runtime.encode(FEATURES[0])))
    assert probabilities[:, [1, len(runtime.tokens) - 1]].max() == 0
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert runtime.text(np.zeros((3, 20), dtype=np.float32)) == ""  # too short for a frame


@pytest.mark.parametrize("write", [write_toy_ctc, write_toy_transducer])
@pytest.mark.parametrize("seed", [0, 1])
def test_numpy_search_is_sherpas(write: Any, seed: int, tmp_path: Path) -> None:
    needs_onnx()
    folder = write(tmp_path, seed)
    ours, theirs = (open_runtime(kind, folder) for kind in ("onnxruntime", "sherpa-onnx"))
    texts = [ours.transcribe(wave) for wave in WAVES]
    assert texts == [theirs.transcribe(wave) for wave in WAVES]
    assert all(texts) and len(set(texts)) == len(texts)
    assert np.abs(theirs.features(WAVES[0]) - ours.features(WAVES[0])).max() < 1e-3


def test_a_toy_transducer_looks_at_all_its_labels(tmp_path: Path) -> None:
    """What the test above compares depends on the whole context, so a wrong order would have been seen."""
    needs_onnx()
    runtime = open_runtime("onnxruntime", write_toy_transducer(tmp_path))
    outputs, state = runtime.predict(0)
    assert state == [-1] * (CONTEXT - 1) + [0]
    for label in (3, 4, 5):
        outputs, state = runtime.predict(label, state)
    assert state == [3, 4, 5]
    assert np.abs(outputs - runtime.predict(5, [0, 4, 3])[0]).max() > 0.1


def test_padding_changes_nothing(tmp_path: Path) -> None:
    needs_onnx()
    runtime = open_runtime("onnxruntime", write_toy_ctc(tmp_path))
    features = [runtime.features(wave) for wave in WAVES]
    for together, one in zip(runtime.encode_batch(features), features):
        assert np.abs(together - runtime.encode(one)).max() < 1e-5


def test_faults_are_told_in_words(tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("tensorflow", tmp_path), "'tensorflow' is unknown; allowed: torch, onnxruntime, sherpa-onnx"),
        (("torch", tmp_path, "int8"), "'int8' is not for torch"),
        (("torch", tmp_path, "fp32", 0), "threads: 0"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words):
            open_runtime(*arguments)
    needs_onnx()
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


def test_an_operator_set_of_the_future_is_refused_in_one_line(tmp_path: Path) -> None:
    needs_onnx()

    def future(model: Any) -> None:
        model.opset_import[0].version = 999

    folder = write_toy_ctc(tmp_path, change=future)
    for kind, words in (("onnxruntime", "onnxruntime cannot load it"), ("sherpa-onnx", "ended its process")):
        with pytest.raises(UserError, match=words) as caught:
            open_runtime(kind, folder)
        assert "\n" not in str(caught.value)
