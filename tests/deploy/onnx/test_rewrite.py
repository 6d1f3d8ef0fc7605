"""Changes of graphs before quantisation: smoothing changes no bit, and a blank penalty changes one logit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.deploy.onnx.rewrite import (
    GraphView,
    add_blank_penalty,
    has_blank_bias,
    name_nodes,
    smooth,
    smoothing_factors,
)

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

CHANNELS = 12
NORMS = {
    "17": "norm = LayerNormalization <axis: int = -1> (x, scale, shift)",
    "17 without bias": "norm = LayerNormalization <axis: int = -1> (x, scale)",
    "before 17": "scaled = Mul(x, scale)\n  norm = Add(shift, scaled)",
}


def build(body: str, outputs: list[str], values: dict[str, Any]) -> Any:
    listed = ", ".join(f"float[] {name}" for name in outputs)
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[N, T, {CHANNELS}] x) => ({listed}) {{\n  {body}\n}}'
    model = onnx.parser.parse_model(text)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def run(model: Any, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    norm=st.sampled_from([*NORMS]),
    layers=st.integers(1, 3),
    shared=st.booleans(),
    outliers=st.lists(st.integers(0, CHANNELS - 1), max_size=3),
)
def test_smoothing_changes_no_bit(seed: int, norm: str, layers: int, shared: bool, outliers: list[int]) -> None:
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=CHANNELS).astype(np.float32) for name in ("scale", "shift")}
    values["scale"][outliers] *= 500
    weights = ["w0" if shared else f"w{i}" for i in range(layers)]
    values |= {name: rng.normal(size=(CHANNELS, 5)).astype(np.float32) for name in weights}
    if norm == "17 without bias":
        del values["shift"]
    outputs = [f"y{i}" for i in range(layers)]
    lines = [NORMS[norm], *(f"{out} = MatMul(norm, {weight})" for out, weight in zip(outputs, weights))]
    model, x = build("\n  ".join(lines), outputs, values), rng.normal(size=(2, 3, CHANNELS)).astype(np.float32)
    before = run(model, x)
    peaks = np.abs(rng.normal(size=CHANNELS)) * np.where(np.isin(np.arange(CHANNELS), outliers), 500, 1)
    smoothed = smooth(model, {"norm": peaks, "elsewhere": peaks})
    assert smoothed == 1 or not outliers
    for one, other in zip(before, run(model, x)):
        np.testing.assert_array_equal(one, other)
    used = {name for node in model.graph.node for name in node.input}
    assert all(value.name in used for value in model.graph.initializer)
    assert smoothed == sum("_of_" in name for name in used) / (layers + len(values) - len({*weights}))


def test_a_transposed_gemm_is_smoothed() -> None:
    rng = np.random.default_rng(0)
    values = {
        "scale": np.ones(CHANNELS, dtype=np.float32),
        "shift": np.zeros(CHANNELS, dtype=np.float32),
        "weight": rng.normal(size=(5, CHANNELS)).astype(np.float32),
    }
    lines = "scaled = Mul(x, scale)\n  norm = Add(scaled, shift)\n  y = Gemm <transB: int = 1> (norm, weight)"
    model = build(lines, ["y"], values)
    model.graph.input[0].type.tensor_type.shape.dim.pop(0)
    x = rng.normal(size=(3, CHANNELS)).astype(np.float32)
    (before,) = run(model, x)
    peaks = np.ones(CHANNELS)
    peaks[4] = 1000
    assert smooth(model, {"norm": peaks}) == 1
    np.testing.assert_array_equal(before, run(model, x)[0])
    scale = GraphView(model).constant(model.graph.node[0], 1)
    assert scale is not None and scale[4] < 0.1 and (scale[:4] >= 0.5).all()


@pytest.mark.parametrize(
    "lines",
    [
        "norm = Mul(x, scale)\n  y = MatMul(norm, w)\n  z = Relu(norm)",  # something else sees the norm
        "norm = Mul(x, scale)\n  y = Relu(norm)\n  z = MatMul(y, w)",  # an activation between
        "norm = Relu(x)\n  y = MatMul(norm, w)\n  z = Mul(y, v)",  # nothing to scale
    ],
)
def test_what_cannot_be_smoothed_is_left(lines: str) -> None:
    values = {"scale": np.ones(CHANNELS, dtype=np.float32), "w": np.ones((CHANNELS, 5), dtype=np.float32)}
    model = build(lines, ["z"], {**values, "v": np.ones(5, dtype=np.float32)})
    before = model.SerializeToString()
    assert smooth(model, {name: np.arange(CHANNELS) * 100.0 for name in ("norm", "y", "x")}) == 0
    assert model.SerializeToString() == before


def test_factors_are_powers_of_two_near_the_balance() -> None:
    peaks, rows = np.array([1.0, 1.0, 1.0, 4096.0, 0.0, np.nan]), np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert smoothing_factors(peaks, rows).tolist() == [1, 1, 1, 64, 1, 1]
    assert smoothing_factors(np.zeros(3), np.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("line", ["y = Gemm(x, w, b)", "z = MatMul(x, w)\n  y = Add(z, b)"])
def test_a_blank_penalty_lowers_one_logit(line: str) -> None:
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(CHANNELS, 5)).astype(np.float32), "b": np.zeros(5, dtype=np.float32)}
    model = build(line, ["y"], values)
    model.graph.input[0].type.tensor_type.shape.dim.pop(0)
    x = rng.normal(size=(3, CHANNELS)).astype(np.float32)
    (before,) = run(model, x)
    assert has_blank_bias(model)
    add_blank_penalty(model, 0, 0.5)
    difference = before - run(model, x)[0]
    np.testing.assert_allclose(difference, [[0.5, 0, 0, 0, 0]] * 3, atol=1e-6)


def test_a_graph_without_a_bias_has_no_blank_penalty() -> None:
    model = build("y = MatMul(x, w)", ["y"], {"w": np.ones((CHANNELS, 5), dtype=np.float32)})
    before = model.SerializeToString()
    assert not has_blank_bias(model)
    add_blank_penalty(model, 0, 0.5)
    assert model.SerializeToString() == before


def test_nodes_without_a_name_get_one() -> None:
    model = build("y = MatMul(x, w)", ["y"], {"w": np.ones((CHANNELS, 5), dtype=np.float32)})
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["/y/MatMul"]
