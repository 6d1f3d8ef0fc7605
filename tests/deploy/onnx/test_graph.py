"""Every encoder, whole and as any subnet, computes in onnxruntime what it computes in torch, at any length."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from espnet2.layers.utterance_mvn import UtteranceMVN
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.decode.encoding import encode
from espnet_todm.deploy.forms.base import Export
from espnet_todm.deploy.forms.registry import form_for
from espnet_todm.deploy.onnx.export import write_graph
from espnet_todm.deploy.onnx.graph import ComputedPositions, mean_and_scale
from espnet_todm.encoders.positions import POSITIONS, NoPositions
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from tests.conftest import ENCODERS, conformer, disturb, e_branchformer, random_subnet, speech
from tests.tiny_model import TOKENS, tiny_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

TEXT = [number for number, token in enumerate(TOKENS) if token not in ("<unk>", "<sos/eos>")]
# One of each kind of block, position and input layer; every flavour has been tried.
TRIED = [
    "relative",
    "batch norm, channel groups",
    "absolute positions",
    "scaled absolute positions",
    "legacy relative",
    "VGG front end",
    "E-Branchformer",
    "E-Branchformer, no positions",
    "Transformer",
    "Branchformer",
    "frames as they are",
    "MH-SSM",
    "MH-SSM, causal, inverse start",
    "MH-SSM, no gating, two in series",
    "MH-SSM, relative attention, odd widths",
]


def with_statistics(model: Any) -> Any:
    """The model with global mean and variance normalisation."""
    from espnet2.layers.global_mvn import GlobalMVN

    rng = np.random.default_rng(0)
    frames = 3 + 2 * rng.normal(size=(400, 20))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/stats.npz", count=400, sum=frames.sum(0), sum_square=(frames**2).sum(0))
        model.normalize = GlobalMVN(f"{folder}/stats.npz")
    return model.eval()


def export_of(model: Any, encoder: str, conf: dict[str, Any]) -> Export:
    config = {"encoder": encoder, "encoder_conf": conf, "input_size": 20, "token_type": "char"}
    return form_for(model, "onnx").export(model, config)


def session_of(model: Any, path: Path, opset: int = 17) -> Any:
    (graph,) = export_of(model, model.encoder.name, {}).graphs
    write_graph(graph, path, opset, {}, onnx)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@torch.no_grad()
def log_posteriors(model: Any, features: torch.Tensor) -> np.ndarray:
    """One utterance (T, 20) alone -> (T', tokens of text)."""
    if len(features) < model.encoder.shortest():
        return np.zeros((0, len(TEXT)), dtype=np.float32)
    encoded, _ = model.encode(features[None].clone(), torch.tensor([len(features)]))
    return model.ctc.ctc_lo(encoded)[0, :, TEXT].log_softmax(-1).numpy()


def check(model: Any, session: Any, frames: int, shorter: int, seed: int = 0) -> None:
    """A batch of two padded utterances, and each alone, against the model on each alone."""
    features, lengths = speech(2, frames, seed)
    lengths[1] = max(frames - shorter, 1)
    features[1, lengths[1] :] = -23.0  # as runtimes pad
    log_probs, out = session.run(None, {"x": features.numpy(), "x_lens": lengths.numpy()})
    for row, length, one, cut in zip(log_probs, out, features, lengths.tolist()):
        expected = log_posteriors(model, one[:cut])
        assert length == len(expected)
        np.testing.assert_allclose(row[:length][:, TEXT], expected, atol=1e-4)
        inputs = {"x": one[None, :cut].numpy(), "x_lens": np.array([cut])}
        alone = session.run(None, inputs)[0][0, :length]
        np.testing.assert_allclose(alone[:, TEXT], expected, atol=1e-4)


@pytest.fixture(scope="module", params=TRIED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose encoder is a random subnet of a flavour, and its session."""
    make, options = ENCODERS[request.param]
    encoder = make(**options)
    model = with_statistics(tiny_model(supernet=encoder.extract(random_subnet(encoder, 3, 0.7)).eval()))
    return model, session_of(model, tmp_path_factory.mktemp("graph") / "model.onnx")


@settings(max_examples=15)
@given(frames=st.integers(1, 400), shorter=st.integers(0, 200), seed=st.integers(0, 5))
def test_any_lengths(exported: tuple[Any, Any], frames: int, shorter: int, seed: int) -> None:
    check(*exported, frames, shorter, seed)


def test_minutes_of_speech(exported: tuple[Any, Any]) -> None:
    check(*exported, 3000, 1711)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in TRIED])
def test_every_other_flavour(name: str, tmp_path: Path) -> None:
    """All options, input layers and positions that a supernet may have."""
    make, options = ENCODERS[name]
    encoder = make(**options)
    model = with_statistics(tiny_model(supernet=encoder.extract(random_subnet(encoder, 3, 0.7)).eval()))
    session = session_of(model, tmp_path / "model.onnx")
    for frames, shorter in ((150, 31), (12, 5), (3, 1)):
        check(model, session, frames, shorter)


@pytest.mark.parametrize("name", ["relative", "E-Branchformer", "MH-SSM"])
@pytest.mark.parametrize("seed", [1, 2])
def test_heterogeneous_subnets(name: str, seed: int, tmp_path: Path) -> None:
    make, options = ENCODERS[name]
    encoder: SupernetEncoder = make(**options)
    subnet = random_subnet(encoder, seed, 0.3)  # whole layers and modules are missing
    model = with_statistics(tiny_model(supernet=encoder.extract(subnet).eval()))
    check(model, session_of(model, tmp_path / "model.onnx"), 150, 31)


@pytest.mark.parametrize("opset", [14, 20])
def test_older_and_newer_operators(opset: int, tmp_path: Path) -> None:
    make, options = ENCODERS["MH-SSM, relative attention, odd widths"]
    model = with_statistics(tiny_model(supernet=make(**options)))
    check(model, session_of(model, tmp_path / "model.onnx", opset), 150, 31)


def test_only_standard_operators_are_left(tmp_path: Path) -> None:
    make, options = ENCODERS["MH-SSM"]
    session_of(with_statistics(tiny_model(supernet=make(**options))), tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert "Scan" in {node.op_type for node in model.graph.node}


def test_nothing_that_a_runtime_can_compute_fills_the_file(tmp_path: Path) -> None:
    """Position tables and state spaces' matrices would be many times the model."""
    make, options = ENCODERS["MH-SSM, relative attention, odd widths"]
    model = with_statistics(tiny_model(supernet=make(**options)))
    session_of(model, tmp_path / "model.onnx")
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    floats = [value for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT]
    constants = [attribute.t for node in graph.node for attribute in node.attribute if node.op_type == "Constant"]
    stored = sum(int(np.prod(value.dims)) for value in [*floats, *constants])
    assert stored < 1.5 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in POSITIONS.values() if kind is not NoPositions])
def test_positions_are_espnets_beyond_its_table(kind: Any) -> None:
    table = kind(8, 0.0, max_len=10).eval()
    disturb(table)
    computed = ComputedPositions(table)
    for frames in (300, 7):
        x = torch.randn(2, frames, 8)
        torch.testing.assert_close(computed(x), table(x), atol=1e-5, rtol=1e-5)


def test_the_statistics_are_espnets() -> None:
    model = with_statistics(tiny_model())
    shift, scale = mean_and_scale(model.normalize)
    features, lengths = speech(1, 40)
    torch.testing.assert_close((features - shift) * scale, model.normalize(features.clone(), lengths)[0])
    model.normalize.norm_vars = False
    shift, scale = mean_and_scale(model.normalize)
    torch.testing.assert_close((features - shift) * scale, model.normalize(features.clone(), lengths)[0])


def test_a_hybrid_model_is_exported_as_its_ctc(tmp_path: Path) -> None:
    model = with_statistics(tiny_model(ctc_weight=0.3))
    check(model, session_of(model, tmp_path / "model.onnx"), 80, 11)


@pytest.mark.parametrize("make", [conformer, e_branchformer])
def test_posteriors_are_fed_back_in_the_graph(make: Any, tmp_path: Path) -> None:
    encoder = make(interctc_layer_idx=[1, 2], interctc_use_conditioning=True)
    model = tiny_model(supernet=encoder)
    disturb(model)
    model = with_statistics(model)
    features, lengths = speech(1, 90)
    session = session_of(model, tmp_path / "model.onnx")
    encoded, _ = encode(model, features.clone(), lengths)
    expected = model.ctc.ctc_lo(encoded)[0, :, TEXT].log_softmax(-1).detach().numpy()
    log_probs, _ = session.run(None, {"x": features.numpy(), "x_lens": lengths.numpy()})
    np.testing.assert_allclose(log_probs[0][:, TEXT], expected, atol=1e-4)
    plain = make().eval()
    plain.load_state_dict({name: value for name, value in encoder.state_dict().items() if "conditioning" not in name})
    assert not torch.allclose(plain(features, lengths)[0], encoded, atol=1e-3)


def refused(model: Any, encoder: str = "todm_conformer", **conf: Any) -> str:
    with pytest.raises(UserError) as caught:
        export_of(model, encoder, conf)
    return str(caught.value)


def test_what_has_no_graph_is_named() -> None:
    assert "ctc_weight: 0 leaves no CTC" in refused(with_statistics(tiny_model(ctc_weight=0.0)))
    with_frontend = with_statistics(tiny_model())
    with_frontend.frontend = torch.nn.Identity()
    assert "frontend: Identity cannot be exported" in refused(with_frontend)
    linear = with_statistics(tiny_model())
    linear.preencoder = torch.nn.Identity()
    assert "preencoder: Identity" in refused(linear)
    shifted = with_statistics(tiny_model())
    shifted.blank_id = 3
    assert "the blank is token 3" in refused(shifted)
    other = with_statistics(tiny_model())
    other.encoder = torch.nn.Identity()
    assert "encoder: 'rnn' cannot be exported; allowed: branchformer, conformer" in refused(other, "rnn")
    each = with_statistics(tiny_model())
    each.normalize = UtteranceMVN()
    assert "normalize: UtteranceMVN cannot be exported; needed: global_mvn" in refused(each)
    after = refused(other, "conformer", normalize_before=False, macaron_style=True)
    assert "encoder: 'conformer' with these options cannot be exported: normalize_before" in after


def test_time_stamps_of_another_subsampling_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make, options = ENCODERS["stride 6, chunks apart"]
    model = with_statistics(tiny_model(supernet=make(**options)))
    graph = export_of(model, model.encoder.name, {}).graphs[0]
    assert graph.metadata["subsampling_factor"] == 6
    assert "one frame of 6" in caplog.text
