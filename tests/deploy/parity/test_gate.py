"""The parity gate: it passes what is right, and each planted fault fails the step that it belongs to."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_todm.bin.export import main as export_command
from espnet_todm.bin.parity import main
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.onnx import tokens
from espnet_todm.deploy.onnx.export import export
from espnet_todm.deploy.parity import gate
from espnet_todm.deploy.parity.gate import Origin, ParityError, check_parity, find_origin
from espnet_todm.deploy.parity.report import Limits
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.fbank import device_fbank, fbank
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.recognizer import as_sherpa_writes
from espnet_todm.deploy.runtime.sherpa_subprocess import transcribe_in_subprocess
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json, write_table
from tests.tiny_corpus import noise
from tests.tiny_experiment import TRANSDUCER, change_weights, write_experiment

for package in ("onnx", "onnxruntime", "sherpa_onnx"):
    pytest.importorskip(package)

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "librispeech_mini"
WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.9, 0.5, 1.3))]


def loud_experiment(folder: Path, changes: Optional[dict[str, Any]] = None) -> Path:
    """An untrained supernet that is sure of itself, of text rather than of what is none, in statistics of real features."""
    write_experiment(folder, changes=changes, conv_norm="layer_norm")
    frames = np.concatenate([fbank(wave, 20) for wave in WAVES]).astype(np.float64)
    np.savez(folder / "feats_stats.npz", count=len(frames), sum=frames.sum(0), sum_square=(frames**2).sum(0))
    state = torch.load(folder / "model.pth", weights_only=True)
    tokens = yaml.safe_load((folder / "config.yaml").read_text())["token_list"]
    layer = "joint_network.lin_out" if "decoder" in (changes or {}) else "ctc.ctc_lo"
    state[f"{layer}.weight"] *= 8
    for token in ("<unk>", "<sos/eos>", "<blank>"):
        state[f"{layer}.bias"][tokens.index(token)] = -100.0 if token != "<blank>" else 0.0
    std = torch.as_tensor(frames.std(0), dtype=torch.float32)
    state.update({"normalize.mean": torch.as_tensor(frames.mean(0), dtype=torch.float32), "normalize.std": std})
    torch.save({name: value for name, value in state.items() if name in state}, folder / "model.pth")
    return folder


def take_out(experiment: Path, size: str = "small") -> Path:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), experiment / "subnets" / size)
    return experiment / "subnets" / size


KINDS = {
    "ctc": None,
    "transducer": TRANSDUCER,
    "audio": {"frontend": "todm_fbank", "frontend_conf": {"n_mels": 20}, "input_size": None},
}


@pytest.fixture(scope="module", params=KINDS)
def subnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiment/subnets/small, with its onnx folder."""
    folder = take_out(loud_experiment(tmp_path_factory.mktemp(request.param), KINDS[request.param]))
    export(folder)
    return folder


@pytest.fixture(scope="module")
def speech(subnet: Path) -> list[Speech]:
    """What PyTorch hears is what is said: its word error rate is 0."""
    runtime = open_runtime("torch", subnet)
    texts = [runtime.transcribe(wave) for wave in WAVES]
    assert all(texts) and len(set(texts)) == len(texts)
    return [Speech(f"utt{i}", wave, text) for i, (wave, text) in enumerate(zip(WAVES, texts))]


@pytest.fixture
def exported(subnet: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(subnet / "onnx", tmp_path / "onnx"))


def parted(subnet: Path, exported: Path, speech: list[Speech], **options: Any) -> str:
    """The gate's complaint."""
    with pytest.raises(ParityError) as caught:
        check_parity(subnet, exported, speech, **options)
    assert "\n" not in str(caught.value)
    assert read_json(exported / "parity.json")["holds"] is False
    assert "PARTED" in (exported / "parity.md").read_text(encoding="utf-8")
    return str(caught.value)


def test_a_right_export_holds(subnet: Path, speech: list[Speech]) -> None:
    report = check_parity(subnet, subnet / "onnx", speech, origin=find_origin(subnet))
    assert report.first_fault is None
    assert [rate.of for rate in report.rates] == ["PyTorch", "onnxruntime fp32", "sherpa-onnx fp32"]
    assert all((rate.wer, rate.changed) == (0, 0) for rate in report.rates)
    compared = {(step.name, step.of, step.against) for step in report.steps}
    assert ("features", "sherpa-onnx", "training") in compared
    assert ("encoder", "PyTorch", "supernet slice") in compared
    assert ("posteriors", "onnxruntime fp32", "PyTorch") in compared
    assert ("transcripts", "sherpa-onnx fp32", "onnxruntime fp32") in compared
    saved = read_json(subnet / "onnx" / "parity.json")
    assert saved["holds"] is True and len(saved["steps"]) == len(report.steps)
    assert (subnet / "onnx" / "parity.md").read_text(encoding="utf-8") == report.markdown()


def test_other_statistics_part_at_the_first_step_that_sees_them(
    subnet: Path, speech: list[Speech], tmp_path: Path
) -> None:
    """The graph's mean and variance are those of other features."""
    other = Path(shutil.copytree(subnet, tmp_path / "other"))
    stats = dict(np.load(other / "feats_stats.npz"))
    np.savez(other / "feats_stats.npz", **{**stats, "sum": stats["sum"] + 3 * stats["count"]})
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["normalize_conf"]["stats_file"] = str(other / "feats_stats.npz")
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    change_weights(other, lambda name, value: value + 3 if name == "normalize.mean" else value)
    export(other)
    first = "encoder" if (other / "onnx" / "encoder.onnx").is_file() else "posteriors"
    assert f"the {first} of onnxruntime fp32 and of PyTorch part at utterance utt" in parted(
        subnet, other / "onnx", speech
    )


def test_tokens_in_another_order_part_at_the_transcripts(subnet: Path, exported: Path, speech: list[Speech]) -> None:
    path = exported / "tokens.txt"
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()]
    names[2:-1] = names[3:-1] + names[2:3]
    path.write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)), encoding="utf-8")
    complaint = parted(subnet, exported, speech)
    assert "the transcripts of onnxruntime fp32 and of PyTorch part at utterance utt" in complaint
    assert "allowed: 0" in complaint


def test_other_weights_part_from_the_slice(subnet: Path, exported: Path, speech: list[Speech], tmp_path: Path) -> None:
    """The extracted model is not what the supernet has become since."""
    origin = find_origin(subnet)
    assert origin is not None
    state = torch.load(origin.checkpoint, weights_only=True)
    name = next(name for name in state if name.endswith("embed.conv.0.weight"))
    torch.save({**state, name: state[name] * 1.5}, tmp_path / "later.pth")
    later = replace(origin, checkpoint=tmp_path / "later.pth")
    assert "the encoder of PyTorch and of supernet slice part" in parted(subnet, exported, speech, origin=later)
    assert "checkpoint_sha256" in json.loads((subnet / "card.json").read_text())["supernet"]


def test_an_own_scale_of_features_parts_first(
    subnet: Path, exported: Path, speech: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples as 16-bit integers: what training had, if sherpa-onnx is to get it."""
    monkeypatch.setattr(gate, "fbank", lambda samples, bins: fbank(samples * 32768, bins))
    complaint = parted(subnet, exported, speech)
    assert "the features of sherpa-onnx and of training part" in complaint
    assert "differ by 21" in complaint  # 2 ln 32768


def test_a_runtime_that_hears_otherwise_parts_last(
    subnet: Path, exported: Path, speech: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [one.text for one in speech]
    heard = [texts[0], texts[1] + " A", texts[2]]
    monkeypatch.setattr(gate, "transcribe_in_subprocess", lambda *_: heard)
    complaint = parted(subnet, exported, speech)
    assert "the transcripts of sherpa-onnx fp32 and of onnxruntime fp32 part at utterance utt1" in complaint
    assert "differ by 1, allowed: 0" in complaint


def test_what_int8_changes_is_told_and_bounded_on_request(subnet: Path, exported: Path, speech: list[Speech]) -> None:
    """In its place stands a model that hears something else."""
    from onnx import load, numpy_helper, save

    for path in list(exported.glob("*.onnx")):
        model = load(str(path))
        for weight in model.graph.initializer:
            value = numpy_helper.to_array(weight)
            if path.stem != "decoder" and value.dtype == np.float32 and value.ndim == 2:
                weight.CopyFrom(numpy_helper.from_array(-value, weight.name))
        save(model, str(path.with_suffix(".int8.onnx")))
    report = check_parity(subnet, exported, speech, precisions=("fp32", "int8"))
    told = {step.name: step for step in report.steps if step.of == "onnxruntime int8"}
    assert told["posteriors"].difference > 0.1 and told["transcripts"].difference > 0
    assert told["WER"].difference == report.rates[3].wer > 0
    limits = Limits(wer_points=1.0)
    complaint = parted(subnet, exported, speech, precisions=("fp32", "int8"), limits=limits)
    assert "the WER of onnxruntime int8 and of PyTorch part" in complaint and "allowed: 1" in complaint


def test_the_command_prints_tables_and_stops_at_the_first_fault(
    subnet: Path, exported: Path, speech: list[Speech], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in speech:
        soundfile.write(tmp_path / f"{one.name}.wav", one.samples, 16000, subtype="FLOAT")
    write_table(tmp_path / "wav.scp", {one.name: str(tmp_path / f"{one.name}.wav") for one in speech})
    write_table(tmp_path / "text", {one.name: one.text for one in speech})
    command = ["--experiment", str(subnet.parents[1]), "--utterances", "2", "--text", str(tmp_path / "text")]
    with pytest.raises(UserError, match="--scp is missing"):
        main(command)
    main([*command, "--scp", str(tmp_path / "wav.scp")])
    assert f"## Parity of {subnet}\n\n2 utterances" in capsys.readouterr().out
    names = [line.split()[0] for line in (exported / "tokens.txt").read_text(encoding="utf-8").splitlines()]
    names[2:-1] = names[3:-1] + names[2:3]
    (exported / "tokens.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(names)), encoding="utf-8")
    shutil.copytree(exported, subnet / "damaged", dirs_exist_ok=True)
    with pytest.raises(ParityError, match="the transcripts of"):
        main([*command, "--scp", str(tmp_path / "wav.scp"), "--folder", "damaged"])
    assert "**Parted**" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no extracted size"):
        main(["--experiment", str(tmp_path), "--scp", str(tmp_path / "wav.scp"), "--text", str(tmp_path / "text")])


def test_export_leaves_nothing_that_the_gate_does_not_let_pass(
    subnet: Path, speech: list[Speech], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "files"
    for one in speech:
        soundfile.write(tmp_path / f"{one.name}.wav", one.samples, 16000, subtype="FLOAT")
    write_table(tmp_path / "wav.scp", {one.name: str(tmp_path / f"{one.name}.wav") for one in speech})
    write_table(tmp_path / "text", {one.name: one.text for one in speech})
    command = [str(subnet), "--output", str(output), "--precision", "fp32"]
    given = ["--scp", str(tmp_path / "wav.scp"), "--text", str(tmp_path / "text")]
    with pytest.raises(UserError, match="give --scp and --text, or --no_parity to skip"):
        export_command(command)
    with monkeypatch.context() as change:
        change.setattr(gate, "transcribe_in_subprocess", lambda *_: ["A", "B", "C"])
        with pytest.raises(ParityError, match="the transcripts of sherpa-onnx"):
            export_command([*command, *given])
    with monkeypatch.context() as change:
        change.setattr(tokens, "runtime_tokens", lambda names, *_: ["blank", *names[1:]])
        with pytest.raises(UserError, match=rf"^{output}/tokens.txt: "):
            export_command([*command, *given])
    assert not [path for path in tmp_path.iterdir() if "files" in path.name]
    export_command([*command, *given])
    assert read_json(output / "parity.json")["holds"] is True
    export_command([*command, "--no_parity"])
    assert not (output / "parity.json").exists()
    export_command([*command, "int8", *given, "--max_wer_points", "1000"])
    assert read_json(output / "parity.json")["holds"] is True
    assert read_json(output / "card.json")["int8"]["tried"] == 1


def test_a_graph_that_minds_padding_parts(
    subnet: Path, exported: Path, speech: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch tells the graph that its utterances are all as long as the longest."""
    from espnet_todm.deploy.runtime.onnx import Session

    run = Session.__call__

    def all_of_one_length(graph: Session, *values: np.ndarray) -> list[np.ndarray]:
        if values[0].ndim == 3 and len(values[0]) > 1:
            outputs = run(graph, values[0], np.full_like(values[1], values[1].max()))
            return [outputs[0], run(graph, *values)[1]]
        return run(graph, *values)

    monkeypatch.setattr(Session, "__call__", all_of_one_length)
    assert "of onnxruntime fp32 in a batch and of onnxruntime fp32 part at utterance utt1" in parted(
        subnet, exported, speech
    )


def test_a_slice_is_looked_for_where_the_card_says(subnet: Path, tmp_path: Path) -> None:
    origin = find_origin(subnet)
    assert origin is not None and origin == find_origin(subnet, subnet.parent.parent)
    assert isinstance(origin, Origin) and origin.config == subnet.parent.parent / "config.yaml"
    with pytest.raises(UserError, match="no such file"):
        find_origin(subnet, tmp_path)
    (tmp_path / "model.pth").write_bytes(b"another")
    with pytest.raises(UserError, match=r"not the checkpoint that .* was taken from"):
        find_origin(subnet, tmp_path)
    card = json.loads((subnet / "card.json").read_text())
    card["supernet"]["max_abs_difference"] = None
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert find_origin(tmp_path) is None


def test_a_limit_is_no_negative_number() -> None:
    with pytest.raises(UserError, match="limit of posteriors: -1"):
        Limits(posteriors=-1)


@pytest.mark.real_speech
@pytest.mark.skipif(not REAL.is_dir(), reason="no real speech beside the checkout")
def test_real_speech(subnet: Path) -> None:
    speech = []
    for path in sorted(REAL.glob("dev-mini/*/*/*.ogg"))[:4]:
        speech.append(Speech(path.stem, soundfile.read(path, dtype="float32")[0], "SOME WORDS"))
    assert len(speech) == 4
    report = check_parity(subnet, subnet / "onnx", speech, origin=find_origin(subnet))
    assert report.first_fault is None
    assert 0 < report.steps[0].difference < 1e-3


def test_spaces_that_sherpa_onnx_removes_are_no_difference(tmp_path: Path) -> None:
    """sherpa-onnx 2 writes a transducer's SHE 'LL as SHE'LL; once an export failed on it."""
    subnet = take_out(loud_experiment(tmp_path, TRANSDUCER))
    export(subnet)
    listed = subnet / "onnx" / "tokens.txt"
    renamed = listed.read_text(encoding="utf-8").replace("\n▁ ", "\nH ")  # else two spaces, of which one is left
    renamed = re.sub(r"^[A-G] ", "▁' ", renamed, flags=re.MULTILINE)
    listed.write_text(renamed, encoding="utf-8")
    texts = transcribe_in_subprocess(subnet / "onnx", "fp32", 1, WAVES)
    spelled = [open_onnx(subnet / "onnx", "fp32", 1).text(device_fbank(wave, 20)) for wave in WAVES]
    assert texts != spelled, "sherpa-onnx keeps these spaces now: as_sherpa_writes is no longer needed"
    assert texts == [*map(as_sherpa_writes, spelled)]
