"""Every export form: the search finds an outlier that was put into one layer, and smoothing mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.int8.files import Int8Files
from espnet_todm.deploy.int8.meter import Meter
from espnet_todm.deploy.int8.search import Repair, _Search, layers_of
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.recipe import Recipe
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from tests.deploy.int8.toy import tones
from tests.deploy.onnx.test_export import small_of
from tests.deploy.onnx.test_streaming import STREAMS
from tests.tiny_experiment import TRANSDUCER, change_weights, write_experiment

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

OUTLIER = 2048.0
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ctc": ("onnx", {}, {"conv_norm": "layer_norm"}),
    "transducer": ("onnx", TRANSDUCER, {"conv_norm": "layer_norm"}),
    "streaming ctc": ("streaming-onnx", {}, STREAMS),
    "streaming transducer": ("streaming-onnx", TRANSDUCER, STREAMS),
}


def put_outlier(name: str, value: torch.Tensor) -> torch.Tensor:
    """Channel 3 before the first feed-forward layer is larger, and its weights are smaller: the model computes the same."""
    if name.endswith(("encoders.0.norm_ff.weight", "encoders.0.norm_ff.bias")):
        value[3] *= OUTLIER
    if name.endswith("encoders.0.feed_forward.w_1.weight"):
        value[:, 3] /= OUTLIER
    return value


@pytest.mark.parametrize("form", [*FORMS])
def test_an_outlier_is_found_and_smoothed(form: str, tmp_path: Path) -> None:
    format_name, changes, conf = FORMS[form]
    subnet = small_of(write_experiment(tmp_path / "exp", changes=changes, features=80, **conf), tmp_path / "small")
    change_weights(subnet, put_outlier)
    speech = [Speech(f"utt{i}", tones(i, 20), "A B") for i in range(2)]
    options = ExportOptions(format=format_name)
    folder = export(subnet, options=options, repair=Repair(speech, 1000.0))
    card = read_json(folder / "card.json")["int8"]
    assert card["method"] == "dynamic, int8 weights" and card["tried"] == 1
    parts = open_onnx(folder).graphs
    files = Int8Files(folder, [*parts])
    search = _Search(files, Meter(files, speech), 0.0)
    for one, other in zip(search.meter._features, search.meter._device_features):
        np.testing.assert_allclose(one, other, atol=0.01)
    layers = [one for part in parts for one in layers_of(part, files.exact(part))]
    assert {one.part for one in layers} == {*parts}
    search._examine([one for one in layers if "/feed_forward" in one.name], Recipe())
    worst = search.damages[0]
    assert worst.layer.name.endswith("/feed_forward/MatMul") and [*worst.activation.outliers()] == [3]
    assert search._damage(worst.layer, Recipe(smooth=True)) < 0.1 * worst.error


def test_nothing_is_written_where_nothing_is_good_enough(tmp_path: Path) -> None:
    class Hopeless(Repair):
        def __call__(self, files: Int8Files, first: Recipe) -> dict[str, Any]:
            files.write(first)
            raise UserError(f"max_wer_points: {files.folder} is hopeless")

    subnet = small_of(write_experiment(tmp_path / "exp"), tmp_path / "small")
    with pytest.raises(UserError, match=f"max_wer_points: {subnet}/onnx is hopeless"):
        export(subnet, repair=Hopeless([], 0.0))
    assert not [path for path in subnet.iterdir() if "onnx" in path.name]
