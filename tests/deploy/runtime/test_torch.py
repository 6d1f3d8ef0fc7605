"""PyTorch as a runtime: it writes what recipes decode, of an extracted model and of a slice alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espnet_todm.card import read_card
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.torch import TorchRuntime, load_slice, torch_runtime
from tests.tiny_experiment import write_experiment

FEATURES = [np.random.default_rng(seed).normal(size=(60 + 9 * seed, 20)).astype(np.float32) for seed in range(3)]


def extracted(experiment: Path, size: str, output: Path) -> Path:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), output)
    return output


def slice_of(experiment: Path, subnet: str) -> TorchRuntime:
    return torch_runtime(*load_slice(experiment / "config.yaml", experiment / "model.pth", subnet))


def test_slice_and_extracted_model_are_the_same(experiment: Path, tmp_path: Path) -> None:
    """Also of a subnet that is no named size: its card says what it is."""
    folder = extracted(experiment, "uneven", tmp_path / "uneven")
    small = open_runtime("torch", folder)
    for subnet in ("uneven", str(folder / "card.json")):
        whole = slice_of(experiment, subnet)
        for features in FEATURES:
            one, other = small.encode(features), whole.encode(features)
            assert np.abs(one - other).max() < 1e-5
            assert np.abs(small.posteriors(one) - whole.posteriors(other)).max() < 1e-5
    other = slice_of(experiment, "small")
    assert np.abs(small.encode(FEATURES[0]) - other.encode(FEATURES[0])).max() > 1e-2


@pytest.mark.parametrize("encoder", ["todm_conformer", "todm_e_branchformer", "todm_transformer"])
def test_sizes_that_feed_posteriors_back_are_extracted_and_decoded(encoder: str, tmp_path: Path) -> None:
    """Evenly scaled ones as ESPnet's own encoder with its own intermediate CTC."""
    places = {"interctc_layer_idx": [1, 3], "interctc_use_conditioning": True}
    whole = write_experiment(
        tmp_path / "exp", encoder, {"model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.3}}, **places
    )
    for size, left in (("full", [1, 3]), ("small", [1]), ("uneven", [1, 3])):
        folder = extracted(whole, size, tmp_path / size)
        card = read_card(folder / "card.json")
        assert card["encoder_conf"]["interctc_layer_idx"] == left and card["supernet"]["max_abs_difference"] < 1e-5
        assert card["encoder"] == (encoder if size == "uneven" else encoder.split("_", 1)[1])
        small, slice_ = open_runtime("torch", folder), slice_of(whole, size)
        for features in FEATURES:
            assert np.abs(small.encode(features) - slice_.encode(features)).max() < 1e-5


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
