"""Recipes of quantisation: which weights become which integers, and what stays in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espnet_todm.deploy.onnx.quantize import layer_of, to_int8
from espnet_todm.deploy.onnx.recipe import Recipe
from espnet_todm.errors import UserError
from tests.deploy.int8.toy import write_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def weights(tmp_path: Path, recipe: Recipe, **options: Any) -> dict[str, np.ndarray]:
    """The integer weights of the toy model, by name without suffix."""
    source = write_model(tmp_path / "toy") / "model.onnx"
    to_int8(source, tmp_path / "model.int8.onnx", recipe, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["toy", "model.int8.onnx"] or len([*tmp_path.iterdir()]) == 2
    values = onnx.load(str(tmp_path / "model.int8.onnx")).graph.initializer
    return {
        value.name.replace("_quantized", ""): onnx.numpy_helper.to_array(value)
        for value in values
        if value.name.endswith("_quantized")
    }


def test_seven_bits_are_64_or_less(tmp_path: Path) -> None:
    plain, reduced = weights(tmp_path, Recipe()), weights(tmp_path, Recipe(weights="7bit"))
    assert [*plain] == [*reduced] == ["first", "second", "third"]
    for name in plain:
        assert plain[name].dtype == reduced[name].dtype == np.int8
        assert np.abs(plain[name].astype(int)).max() == 127 and np.abs(reduced[name].astype(int)).max() == 64


def test_unsigned_weights(tmp_path: Path) -> None:
    assert {value.dtype for value in weights(tmp_path, Recipe(weights="uint8")).values()} == {np.dtype(np.uint8)}


def test_each_channel_has_its_scale(tmp_path: Path) -> None:
    found = weights(tmp_path, Recipe(per_channel=True))
    assert all((np.abs(value.astype(int)).max(0) == 127).all() for value in found.values())


def test_modules_are_kept_or_quantized_alone(tmp_path: Path) -> None:
    assert [*weights(tmp_path, Recipe(kept=["model/wide/MatMul", "other/middle/MatMul"]))] == ["second", "third"]
    assert [*weights(tmp_path, Recipe(), only="model/middle/MatMul")] == ["second"]


def test_layers_by_names_of_nodes() -> None:
    assert layer_of("joiner", "/output/Gemm") == "joiner/output/Gemm"
    assert layer_of("encoder", "/a/b.0/MatMul/MatMulAddFusion") == "encoder/a/b.0/MatMul"


def test_unknown_weights_are_named() -> None:
    with pytest.raises(UserError, match="weights: 'int4' is unknown; allowed: int8, 7bit, uint8"):
        Recipe(weights="int4")
