"""The search for an int8 export: it finds what int8 damages, and takes the first remedy that is good enough."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.int8 import search
from espnet_todm.deploy.int8.files import Int8Files
from espnet_todm.deploy.int8.meter import Meter
from espnet_todm.deploy.int8.search import LARGEST, Repair
from espnet_todm.deploy.onnx.recipe import METHODS, Recipe
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from tests.deploy.int8.toy import speech_of, write_model
from tests.deploy.toy_onnx import write_toy_transducer
from tests.tiny_corpus import noise

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)


def repaired(folder: Path, points: float, first: str = "dynamic") -> dict[str, Any]:
    speech = speech_of(folder)
    assert all(one.text.split() for one in speech)
    return dict(Repair(speech, points)(Int8Files(folder, ["model"]), METHODS[first])["int8"])


def test_a_good_model_is_left_as_it_is(tmp_path: Path) -> None:
    card = repaired(write_model(tmp_path), 85.0)
    assert card["tried"] == 1 and card["recipe"] == read_recipe(Recipe())
    assert card["wer"]["fp32"] == 0 and card["wer"]["plain"] == card["wer"]["chosen"] <= 85
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.int8.onnx", "tokens.txt"}


def read_recipe(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.__dict__}


def test_outliers_behind_a_layer_norm_are_smoothed(tmp_path: Path) -> None:
    card = repaired(write_model(tmp_path, "norm"), 85.0)
    assert card["recipe"]["smooth"] and not card["recipe"]["kept"]
    assert card["wer"]["plain"] > 85 and card["wer"]["chosen"] <= 85
    assert card["posterior_error"]["chosen"] < 0.01 * card["posterior_error"]["plain"]
    told = read_json(tmp_path / "int8.json")
    assert told["layers"][0]["layer"] == "model/wide/MatMul"
    assert [*told["layers"][0]["outliers"]] == ["3"]
    assert [trial["method"] for trial in told["trials"]][:2] == ["dynamic, int8 weights", "dynamic, 7bit weights"]
    assert card["method"] == told["trials"][-1]["method"] and card["method"].endswith("smoothed")
    assert "|model/wide/MatMul|" in (tmp_path / "int8.md").read_text(encoding="utf-8")
    assert (tmp_path / "int8.png").is_file()


def test_the_files_are_those_of_the_card(tmp_path: Path) -> None:
    speech = speech_of(write_model(tmp_path, "norm"))
    card = Repair(speech, 85.0)(Int8Files(tmp_path, ["model"]), Recipe())["int8"]
    meter = Meter(Int8Files(tmp_path, ["model"]), speech)
    assert meter.rate(open_onnx(tmp_path, "int8"))[0] == card["wer"]["chosen"]
    assert card["bytes"]["chosen"] == (tmp_path / "model.int8.onnx").stat().st_size <= LARGEST * card["bytes"]["plain"]


def test_the_worst_module_is_kept_where_nothing_else_helps(tmp_path: Path) -> None:
    card = repaired(write_model(tmp_path, "middle_active"), 85.0)
    assert card["recipe"]["kept"] == ("model/products/MatMul",)
    assert card["bytes"]["plain"] < card["bytes"]["chosen"] <= LARGEST * card["bytes"]["plain"]


def test_what_is_too_large_to_keep_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_wer_points: 5 is not reached on \d+ words: the best of \d+ ") as caught:
        repaired(write_model(tmp_path, "wide_active"), 5.0)
    assert "\n" not in str(caught.value) and "allowed: " in str(caught.value)
    assert not [*tmp_path.glob("int8.*")]


def test_a_recipe_of_the_user_comes_first(tmp_path: Path) -> None:
    assert repaired(write_model(tmp_path), 85.0, "uint8")["recipe"]["weights"] == "uint8"


def test_a_blank_penalty_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are planted: each recipe without a penalty has some more."""
    rate = Meter.rate

    def worse(meter: Meter, runtime: Any) -> tuple[float, float]:
        wer, seconds = rate(meter, runtime)
        return wer + 99 * (runtime is not meter._exact and not planted[-1].blank_penalty), seconds

    planted: list[Recipe] = []
    write = Int8Files.write
    monkeypatch.setattr(Meter, "rate", worse)
    monkeypatch.setattr(Int8Files, "write", lambda files, recipe: (planted.append(recipe), write(files, recipe)))
    card = repaired(write_model(tmp_path), 90.0)
    assert card["recipe"]["blank_penalty"] == search.BLANK_PENALTIES[0]


def test_a_remedy_must_make_the_error_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first one, all word error rates are good by chance."""
    rates = iter([(0.0, 1.0), (50.0, 1.0), *[(0.0, 1.0)] * 50])
    monkeypatch.setattr(Meter, "rate", lambda meter, runtime: next(rates))
    monkeypatch.setattr(Meter, "error", lambda meter, runtime: 1.0)
    with pytest.raises(UserError, match=r"is not reached on \d+ words"):
        repaired(write_model(tmp_path), 10.0)


def test_features_of_the_device_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "device_rate", lambda meter, runtime: 100.0)
    with pytest.raises(UserError, match="is not reached on"):
        repaired(write_model(tmp_path), 85.0)


def test_all_graphs_of_a_transducer_are_measured(tmp_path: Path) -> None:
    folder = write_toy_transducer(tmp_path)
    runtime = open_onnx(folder)
    waves = [noise(0.5, seed) for seed in range(2)]
    speech = [search.Speech(f"utt{i}", wave, runtime.transcribe(wave)) for i, wave in enumerate(waves)]
    files = Int8Files(folder, ["encoder", "decoder", "joiner"])
    meter = Meter(files, speech)
    assert meter.wer == 0 and meter.error(meter.runtime([])) < 1e-6
    files.write(Recipe())
    errors = {part: meter.error(meter.runtime([part])) for part in files.parts}
    assert errors["decoder"] < 1e-6 < min(errors["encoder"], errors["joiner"])  # the toy decoder has no matrix product
    layers = [one for part in files.parts for one in search.layers_of(part, files.exact(part))]
    assert [one.name for one in layers] == ["encoder/encoder_out/MatMul", "joiner/logit/MatMul"]
    seen = meter.watch(layers)["joiner"].seen["active"]
    assert -1.01 < seen.low < 0 < seen.high < 1.01 and seen.peaks.shape == (12,)


def test_progress_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        repaired(write_model(tmp_path, "norm"), 85.0)
    assert "int8: dynamic, int8 weights: WER " in caplog.text and "measuring 3 layers one by one" in caplog.text


def test_numbers_that_are_none_are_an_infinite_error(tmp_path: Path) -> None:
    speech = speech_of(write_model(tmp_path))
    meter = Meter(Int8Files(tmp_path, ["model"]), speech)
    runtime = meter.runtime([])
    runtime.posteriors = lambda encoded, path=None: np.full_like(encoded, np.nan)  # type: ignore[method-assign]
    assert meter.error(runtime) == np.inf


def test_static_recipes_are_tried_with_calibration_only() -> None:
    assert not any(recipe.static for recipe in search._variants(False))
    assert any(recipe.static for recipe in search._variants(True))
    assert len({*map(str, search._variants(True))}) == 9
    assert str(replace(Recipe(), kept=("a", "b"))) == "dynamic, int8 weights, 2 layers in fp32"
