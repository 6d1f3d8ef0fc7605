"""Sizes with an output layer and norms of their own (``output_layers: per_size``, ``own_affine``) pass the gate: those that
a training chose, and those of the ``kd`` trainer."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.onnx.export import export
from espnet_todm.deploy.parity.gate import check_parity, find_origin
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.fbank import fbank
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.espnet.load import load_extracted, read_config
from tests.tiny_corpus import noise
from tests.tiny_experiment import TOKENS, write_experiment

for package in ("onnx", "onnxruntime", "sherpa_onnx"):
    pytest.importorskip(package)

SIZES = ("full", "medium", "small")
WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.9, 1.3))]
# As conf/encoder/conformer_vgg.yaml and conf/train/ortho_softmax.yaml have it, at the widths of write_experiment.
ENCODER = {
    "sizes": {"medium": 0.996, "small": 0.992},  # the front end is nearly all of so small a model
    "criterion": "flops",
    "input_layer": "vgg4",
    "convolution_first": True,
    "conv_norm": "layer_norm",
    "pos_enc_layer_type": "none",
    "selfattention_layer_type": "selfattn",
}
MODEL = {"ctc_weight": 1.0, "output_layers": "per_size"}
LEARNED = {
    "subnet_trainer": "ortho_softmax",
    "subnet_trainer_conf": {"stage1_steps": 2, "granularity": "component"},
    "model_conf": MODEL,
}
OWN = {"own_affine": True, "own_branch_scale": 1.0}


@pytest.fixture(scope="module", params=["ortho_softmax", "kd"])
def chosen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet whose three output layers say other things, and its extracted sizes. The sizes of ortho_softmax are chosen;
    those of kd have norms and branch scales of their own."""
    from espnet2.tasks.asr import ASRTask

    changes, own = (LEARNED, {}) if request.param == "ortho_softmax" else ({"model_conf": MODEL}, OWN)
    folder = write_experiment(tmp_path_factory.mktemp(request.param), changes=changes, **ENCODER, **own)
    frames = np.concatenate([fbank(wave, 20) for wave in WAVES]).astype(np.float64)
    np.savez(folder / "feats_stats.npz", count=len(frames), sum=frames.sum(0), sum_square=(frames**2).sum(0))
    model = ASRTask.build_model(argparse.Namespace(**read_config(folder / "config.yaml")))
    state = torch.load(folder / "model.pth", weights_only=True)
    model.load_state_dict({**state, **{k: v for k, v in model.state_dict().items() if k.startswith("normalize.")}})
    if request.param == "ortho_softmax":
        model.subnet_trainer.decide(model, 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in (
            model.ctc.ctc_lo,
            *model.size_outputs.values(),
        ):  # sure of themselves, of text rather than of none
            layer.weight.copy_(2 * torch.randn(layer.weight.shape, generator=generator))
            for token in ("<unk>", "<sos/eos>"):
                layer.bias[TOKENS.index(token)] = -100.0
    torch.save(model.state_dict(), folder / "model.pth")
    supernet = load_supernet(folder / "config.yaml", folder / "model.pth")
    for size in SIZES:
        extract(supernet, supernet.encoder.find_subnet(size), folder / "subnets" / size)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_each_size_passes_the_gate_with_its_own_layer(chosen: Path, size: str) -> None:
    supernet = load_supernet(chosen / "config.yaml", chosen / "model.pth")
    small, _ = load_extracted(chosen / "subnets" / size)
    own = supernet.model.output_layer(size)
    others = [supernet.model.output_layer(other) for other in SIZES if other != size]
    assert torch.equal(small.ctc.ctc_lo.weight, own.weight) and torch.equal(small.ctc.ctc_lo.bias, own.bias)
    assert not any(torch.equal(own.weight, other.weight) for other in others)
    texts = [open_runtime("torch", chosen / "subnets" / size).transcribe(wave) for wave in WAVES]
    assert all(texts)
    speech = [Speech(f"utt{i}", wave, text) for i, (wave, text) in enumerate(zip(WAVES, texts))]
    folder = export(chosen / "subnets" / size)
    report = check_parity(chosen / "subnets" / size, folder, speech, origin=find_origin(chosen / "subnets" / size))
    assert report.first_fault is None and all(rate.wer == 0 for rate in report.rates)
    assert ("posteriors", "PyTorch", "supernet slice") in {(s.name, s.of, s.against) for s in report.steps}
