"""Training with the rounding errors of int8: they are those of an export, gradients ignore them, and trainings have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.models.fake_int8 import FakeInt8, rounded_inputs, rounded_weight
from tests.tiny_model import batch, run, trained_by
from tests.tiny_training import arguments, write_config, write_data


def test_the_errors_are_those_of_an_export(tmp_path: Path) -> None:
    """onnxruntime's quantizer and onnx's evaluator are the independent implementation. Kernels without VNNI saturate."""
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxruntime")
    from espnet_todm.deploy.onnx.quantize import to_int8

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 8))
    speech = torch.randn(1, 50, 40) + 0.3
    torch.onnx.export(model, (speech,), str(tmp_path / "model.onnx"), input_names=["x"], dynamo=False)
    to_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    expected = reference.ReferenceEvaluator(str(tmp_path / "model.int8.onnx")).run(None, {"x": speech.numpy()})[0]
    with torch.no_grad():
        exact = model(speech).numpy()
        with FakeInt8():
            rounded = model(speech).numpy()
    error = np.abs(exact - expected).mean()
    assert error > 1e-3
    assert np.abs(rounded - expected).mean() < 0.05 * error


@given(st.integers(1, 4), st.integers(1, 6), st.floats(-2, 2), st.floats(0, 3))
def test_rounded_numbers_lie_on_their_grids(rows: int, columns: int, offset: float, scale: float) -> None:
    values = torch.randn(rows, 3, columns, generator=torch.Generator().manual_seed(rows)) * scale + offset
    for of_utterance, rounded in zip(values, rounded_inputs(values)):
        step = (max(of_utterance.max(), torch.tensor(0.0)) - min(of_utterance.min(), torch.tensor(0.0))) / 255
        assert torch.all((rounded - of_utterance).abs() <= 1.01 * step + 1e-6)
        assert len(rounded.unique()) <= 256
    assert torch.equal(rounded_inputs(values[0]), torch.stack([rounded_inputs(row[None])[0] for row in values[0]]))
    weight = values.flatten(0, 1)
    assert torch.all((rounded_weight(weight) - weight).abs() <= 0.51 * weight.abs().max() / 127 + 1e-6)
    assert torch.equal(rounded_weight(torch.zeros(2, 2)), torch.zeros(2, 2))
    assert torch.equal(rounded_inputs(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))


def test_gradients_pass_through_the_rounding() -> None:
    weight, inputs = torch.randn(3, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    outside = torch.randn(2, 5, 3)
    with FakeInt8():
        (nn.functional.linear(inputs, weight) * outside).sum().backward()
    with torch.no_grad():
        assert torch.allclose(weight.grad, torch.einsum("btn,btk->nk", outside, rounded_inputs(inputs)), atol=1e-5)
        assert torch.allclose(inputs.grad, outside @ rounded_weight(weight), atol=1e-5)


def test_slices_of_a_supernet_are_rounded_too() -> None:
    model = trained_by().eval()
    exact = float(run(model, batch())[0])
    with FakeInt8():
        rounded = float(run(model, batch())[0])
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.2)
    assert float(run(model, batch())[0]) == exact


def test_an_espnet_training_with_it_differs_and_an_unknown_kind_is_named(tmp_path: Path) -> None:
    data, losses = write_data(tmp_path / "data"), []
    for kind in (None, "INT8"):
        config = write_config(tmp_path / "train.yaml", fake_quantization=kind, max_epoch=1)
        main(arguments(data, tmp_path / f"exp_{kind}", "--config", str(config)))
        losses.append(torch.load(tmp_path / f"exp_{kind}/1epoch.pth", weights_only=True))
    assert any(not torch.equal(losses[0][name], tensor) for name, tensor in losses[1].items())
    config = write_config(tmp_path / "train.yaml", fake_quantization="int4")
    with pytest.raises(UserError, match=r"fake_quantization: 'int4'.*int8"):
        main(arguments(data, tmp_path / "exp", "--config", str(config)))
