"""A subnet's folder as ONNX: the files compute what the model computes, and say what a runtime asks for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from espnet_todm.bin.export import main
from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import read_features
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.util.files import hash_file, read_json
from tests.tiny_experiment import TRANSDUCER, write_experiment

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SILENT = (1, 10)  # <unk> and <sos/eos> of TOKENS
ALL = ("fp32", "int8", "fp16")


def run(path: Path, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def utterances(experiment: Path) -> list[torch.Tensor]:
    return [features for _, features in read_features(experiment / "feats.scp")]


@torch.no_grad()
def posteriors(model: Any, features: torch.Tensor) -> np.ndarray:
    """The model's own (T', V), without the tokens that are no text."""
    encoded, _ = model.encode(features[None].clone(), torch.tensor([len(features)]))
    logits = model.ctc.ctc_lo(encoded)[0]
    logits[:, list(SILENT)] = -1e4
    return logits.log_softmax(-1).numpy()


def small_of(experiment: Path, folder: Path, size: str = "small") -> Path:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), folder)
    return folder


@pytest.fixture(scope="module")
def small(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a subnet that is a stock ``encoder: conformer``, exported in all precisions."""
    folder = small_of(experiment, tmp_path_factory.mktemp("subnets") / "small")
    export(folder, options=ExportOptions(ALL))
    return folder


@pytest.fixture(scope="module")
def stateless(transducer_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_of(transducer_experiment, tmp_path_factory.mktemp("subnets") / "stateless", "uneven")
    export(folder, options=ExportOptions(ALL))
    return folder


def test_a_ctc_model_is_the_same_in_onnxruntime(small: Path, experiment: Path) -> None:
    model, config = load_extracted(small)
    assert config["encoder"] == "conformer"
    for features in utterances(experiment):
        log_probs, lengths = run(small / "onnx/model.onnx", features[None], torch.tensor([len(features)]))
        assert log_probs.dtype == np.float32 and lengths.dtype == np.int64
        np.testing.assert_allclose(log_probs[0], posteriors(model, features), atol=1e-4)
        assert lengths.tolist() == [log_probs.shape[1]]


def test_padding_does_not_leak(small: Path, experiment: Path) -> None:
    features = utterances(experiment)
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=-23.0)
    together, lengths = run(small / "onnx/model.onnx", padded, torch.tensor([len(one) for one in features]))
    for row, length, one in zip(together, lengths, features):
        alone, _ = run(small / "onnx/model.onnx", one[None], torch.tensor([len(one)]))
        assert alone.shape[1] == length
        np.testing.assert_allclose(row[:length], alone[0], atol=1e-5)


def test_what_is_too_short_for_a_frame_has_none(small: Path) -> None:
    for frames in (1, 3, 6):
        log_probs, lengths = run(small / "onnx/model.onnx", torch.zeros(1, frames, 20), torch.tensor([frames]))
        assert lengths.tolist() == [0] and np.isfinite(log_probs).all()


def test_tokens_that_are_no_text_are_never_chosen(small: Path, experiment: Path) -> None:
    for name in ("model", "model.int8", "model.fp16"):
        features = utterances(experiment)[0]
        log_probs, _ = run(small / f"onnx/{name}.onnx", features[None], torch.tensor([len(features)]))
        assert np.isfinite(log_probs).all()
        assert (
            log_probs[..., SILENT] < log_probs.min(where=log_probs > -1e3, initial=0, axis=-1)[..., None] - 100
        ).all()


def test_the_files_say_what_a_runtime_asks_for(small: Path) -> None:
    folder = small / "onnx"
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "model.int8.onnx", "model.fp16.onnx", "tokens.txt", "card.json",
    }  # fmt: skip
    for name in ("model.onnx", "model.int8.onnx", "model.fp16.onnx"):
        about = metadata(folder / name)
        assert about["model_type"] == "zipformer2_ctc"
        assert (about["vocab_size"], about["subsampling_factor"]) == ("11", "4")
        assert about["todm_subnet"] == "small" and about["todm_card_sha256"] == hash_file(small / "card.json")
        session = ort.InferenceSession(str(folder / name))
        assert session.get_outputs()[0].shape[-1] == 11  # static: where sherpa-onnx looks the vocabulary's size up
    assert read_json(folder / "card.json") == read_json(small / "card.json")


def test_tokens_are_named_as_the_runtime_reads_them(small: Path) -> None:
    lines = (small / "onnx/tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["<blk> 0", "<unk> 1", "▁ 2", "A 3"] and lines[-1] == "<sos/eos> 10"


def test_int8_and_fp16_are_close(small: Path, experiment: Path) -> None:
    for name, limit in (("model.int8", 0.5), ("model.fp16", 0.05)):
        features = utterances(experiment)[0]
        (expected, _), (computed, _) = (
            run(small / f"onnx/{one}.onnx", features[None], torch.tensor([len(features)])) for one in ("model", name)
        )
        kept = [token for token in range(11) if token not in SILENT]
        difference = np.abs(expected - computed)[..., kept].max()
        assert 0 < difference < limit
    for name, kind in (("model.int8", onnx.TensorProto.INT8), ("model.fp16", onnx.TensorProto.FLOAT16)):
        values = onnx.load(str(small / f"onnx/{name}.onnx")).graph.initializer
        sizes = {
            of: sum(int(np.prod(v.dims)) for v in values if v.data_type == of) for of in (kind, onnx.TensorProto.FLOAT)
        }
        assert sizes[kind] > sizes[onnx.TensorProto.FLOAT]


def test_static_int8_measures_activations(small: Path, experiment: Path, tmp_path: Path) -> None:
    options = ExportOptions(("int8",), int8="static", calibrate=str(experiment / "feats.scp"))
    export(small, tmp_path / "static", options)
    features = utterances(experiment)[0]
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "static/model.int8.onnx")).graph.node}
    assert "QuantizeLinear" in kinds and "DynamicQuantizeLinear" not in kinds
    computed, _ = run(tmp_path / "static/model.int8.onnx", features[None], torch.tensor([len(features)]))
    expected, _ = run(tmp_path / "static/model.onnx", features[None], torch.tensor([len(features)]))
    kept = [token for token in range(11) if token not in SILENT]
    assert np.abs(computed - expected)[..., kept].max() < 1.0
    assert metadata(tmp_path / "static/model.int8.onnx")["model_type"] == "zipformer2_ctc"
    assert sorted(path.suffix for path in (tmp_path / "static").iterdir()) == [".json", ".onnx", ".onnx", ".txt"]


@torch.no_grad()
def test_a_stateless_transducer_is_the_same_in_onnxruntime(stateless: Path, transducer_experiment: Path) -> None:
    model, _ = load_extracted(stateless)
    folder, joint = stateless / "onnx", model.joint_network
    features = utterances(transducer_experiment)[1]
    encoded, lengths = run(folder / "encoder.onnx", features[None], torch.tensor([len(features)]))
    own, own_lengths = model.encode(features[None].clone(), torch.tensor([len(features)]))
    np.testing.assert_allclose(encoded, joint.lin_enc(own).numpy(), atol=1e-4)
    assert lengths.tolist() == own_lengths.tolist()
    for labels in ([0, 0], [-1, 0], [0, 4], [4, 7]):
        (decoded,) = run(folder / "decoder.onnx", torch.tensor([labels]))
        predicted = model.decoder(torch.tensor([labels]).clamp(min=0))[:, -1]
        np.testing.assert_allclose(decoded, joint.lin_dec(predicted).numpy(), atol=1e-5)
        frame = torch.from_numpy(encoded[:, 3])
        (logits,) = run(folder / "joiner.onnx", frame, torch.from_numpy(decoded))
        expected = joint(own[:, 3], predicted)
        expected[:, list(SILENT)] = -1e4
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_a_stateless_transducer_says_what_icefalls_does(stateless: Path) -> None:
    folder = stateless / "onnx"
    names = {f"{part}{suffix}.onnx" for part in ("encoder", "decoder", "joiner") for suffix in ("", ".int8", ".fp16")}
    assert {path.name for path in folder.iterdir()} == {*names, "tokens.txt", "card.json"}
    for suffix in ("", ".int8", ".fp16"):
        assert metadata(folder / f"encoder{suffix}.onnx")["model_type"] == "conformer"
        about = metadata(folder / f"decoder{suffix}.onnx")
        assert (about["vocab_size"], about["context_size"]) == ("11", "2")
        assert about["todm_subnet"] == "uneven"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_transducer_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    decoder = {"decoder": "transducer", "decoder_conf": {"rnn_type": kind, "hidden_size": 12}}
    source = write_experiment(tmp_path / "exp", changes={**TRANSDUCER, **decoder}, conv_norm="layer_norm")
    folder = small_of(source, tmp_path / "small")
    with pytest.raises(UserError, match="TransducerDecoder is recurrent and has no export; use todm_stateless"):
        export(folder)
    assert not (folder / "onnx").exists()


def test_the_command_exports_several_subnets_and_replaces_its_own(small: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(small, other)
    main(
        [
            str(small),
            str(other),
            "--precision",
            "fp32",
            "--output",
            str(tmp_path / "out"),
            "--opset",
            "18",
            "--no_parity",
        ]
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other", "small"]
    assert f"{other}: {tmp_path / 'out/other'}" in capsys.readouterr().out
    imports = onnx.load(str(tmp_path / "out/small/model.onnx")).opset_import
    assert {(opset.domain, opset.version) for opset in imports} == {("", 18)}
    (tmp_path / "out/small/left.txt").write_text("of a former export")
    main([str(small), "--precision", "fp32", "--output", str(tmp_path / "out/small"), "--no_parity"])
    assert {path.name for path in (tmp_path / "out/small").iterdir()} == {"model.onnx", "tokens.txt", "card.json"}


def test_an_interrupted_export_leaves_the_old_one_whole(small: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in (small / "onnx").iterdir()}
    monkeypatch.setattr("espnet_todm.deploy.onnx.export.tokens_text", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(small)
    assert {path.name: path.read_bytes() for path in (small / "onnx").iterdir()} == before
    assert not [path for path in small.iterdir() if ".part" in path.name]


def changed(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a subnet's folder with another config."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("onnx"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}, allow_unicode=True), encoding="utf-8")
    return folder


def test_a_token_list_that_does_not_match_the_card_is_refused(small: Path, tmp_path: Path) -> None:
    tokens = ["<blank>", "<unk>", "<space>", *"GFEDCBA", "<sos/eos>"]
    folder = changed(small, tmp_path / "changed", token_list=tokens)
    with pytest.raises(UserError, match=r"config\.yaml: token_list: its token list is not the one in .*card\.json"):
        export(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_a_model_without_cmvn_is_refused(experiment: Path, tmp_path: Path) -> None:
    source = write_experiment(tmp_path / "plain", changes={"normalize": None, "normalize_conf": {}})
    folder = small_of(source, tmp_path / "small")
    with pytest.raises(UserError, match="normalize: null cannot be exported; needed: global_mvn"):
        export(folder)
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"opset": 9}, "opset: 9 cannot be written; allowed: 14 to 20"),
        ({"opset": 99}, "opset: 99"),
        ({"precisions": ["int4"]}, "precision: 'int4' is unknown; allowed: fp32, int8, fp16"),
        ({"int8": "guess"}, "int8: 'guess' is unknown; allowed: dynamic, static, 7bit, uint8"),
        ({"int8": "static"}, "--calibrate"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        ExportOptions(**options)


def test_a_runtime_that_lacks_the_opset_is_named(small: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Opset 17 is under development")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(UserError, match=r"opset: 17: onnxruntime .* cannot load .*under development"):
        export(small, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_folders_are_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"card\.json: no such file"):
        export(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine exists and is no former export"):
        export(small, mine)
    with pytest.raises(UserError, match="exists and is no former export"):
        export(small, small)
    assert (mine / "thesis.txt").read_text() == "years of work" and (small / "card.json").is_file()


RUNTIME = """
import sys, numpy, sherpa_onnx
kind, folder, suffix = sys.argv[1:]
names = [f"{folder}/{name}{suffix}.onnx" for name in ("encoder", "decoder", "joiner")]
make = sherpa_onnx.OfflineRecognizer
if kind == "ctc":
    recognizer = make.from_zipformer_ctc(f"{folder}/model{suffix}.onnx", f"{folder}/tokens.txt", feature_dim=20)
else:
    recognizer = make.from_transducer(*names, f"{folder}/tokens.txt", feature_dim=20, model_type=kind)
for seed in (0, 1):
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, numpy.random.default_rng(seed).normal(scale=0.1, size=24000).astype("float32"))
    recognizer.decode_stream(stream)
    print("text:", stream.result.text)
"""


def heard(kind: str, folder: Path, suffix: str = "") -> list[str]:
    """What sherpa-onnx writes for two noises; another process, since it ends its process where a file displeases it."""
    command = [sys.executable, "-c", RUNTIME, kind, str(folder), suffix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line[5:].strip() for line in done.stdout.splitlines() if line.startswith("text:")]


def own_texts(folder: Path) -> list[str]:
    """What the model itself writes for them, without the tokens that are no text."""
    from lhotse import Fbank, FbankConfig

    model, config = load_extracted(folder)
    for layer in (model.ctc.ctc_lo, *([model.joint_network.lin_out] if model.use_transducer_decoder else [])):
        layer.bias.data[list(SILENT)] = -1e4
    extractor = Fbank(FbankConfig(num_filters=20))
    noises = [np.random.default_rng(seed).normal(scale=0.1, size=24000).astype("float32") for seed in (0, 1)]
    features = [torch.as_tensor(extractor.extract(noise, 16000)) for noise in noises]
    return [" ".join(text.split()) for text in Decoder(model, config)(features)]


def test_sherpa_onnx_writes_what_the_model_writes(small: Path, stateless: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    for kind, folder in (("ctc", small), ("", stateless)):
        expected = own_texts(folder)
        assert [" ".join(text.split()) for text in heard(kind, folder / "onnx")] == expected and any(expected)
        assert len(heard(kind, folder / "onnx", ".int8")) == 2


def test_a_truncated_model_is_named(small: Path, tmp_path: Path) -> None:
    folder = changed(small, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        export(folder)


def test_a_missing_package_is_named(small: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed .*espnet_todm\[deploy\]"):
        export(small, tmp_path / "out")
