"""ESPnet's s3prl front end and a linear pre-encoder before a supernet. A stand-in for s3prl, whose models are downloads."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import pytest
import torch
from torch import Tensor, nn

import espnet_todm
from espnet_todm.bench.dry_run import dry_run
from espnet_todm.espnet.options import parse_training
from espnet_todm.models.batch import Batch
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from tests.tiny_model import gradients, run
from tests.tiny_training import write_config

espnet_todm.register()
FEATURES, HOP = 24, 320


class Upstream(nn.Module):
    """s3prl.nn.S3PRLUpstream: audio (B, N) -> hidden states of two layers (B, N // HOP, FEATURES) and their lengths."""

    def __init__(self, name: str, **_: Any) -> None:
        super().__init__()
        self.upstream = nn.Linear(HOP, FEATURES)

    @staticmethod
    def available_names() -> list[str]:
        return ["stub"]

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        hidden = self.upstream(audio[:, : audio.size(1) // HOP * HOP].unflatten(1, (-1, HOP)))
        return [hidden, hidden.tanh()], [lengths // HOP] * 2


class Featurizer(nn.Module):
    """s3prl.nn.Featurizer: a learned mean of layers."""

    downsample_rate, output_size = HOP, FEATURES

    def __init__(self, upstream: Upstream, layer_selections: Optional[list[int]] = None) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, states: list[Tensor], lengths: list[Tensor]) -> tuple[Tensor, Tensor]:
        weights = self.weights.softmax(0)
        return torch.stack([w * state for w, state in zip(weights, states)]).sum(0), lengths[0]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package, parts = ModuleType("s3prl"), ModuleType("s3prl.nn")
    parts.Featurizer, parts.S3PRLUpstream = Featurizer, Upstream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.nn", parts)
    changes = {
        "frontend": "s3prl",
        "frontend_conf": {"frontend_conf": {"upstream": "stub"}, "multilayer_feature": True},
        "preencoder": "linear",
        "preencoder_conf": {"input_size": FEATURES, "output_size": 20},
        "freeze_param": ["frontend.upstream"],
        "subnet_trainer_conf": {},
    }
    config = write_config(tmp_path / "train.yaml", **changes)
    return parse_training(["--config", str(config), "--output_dir", "-", "--token_list", "-"])


def built(options: Any) -> TodmModel:
    from espnet2.tasks.asr import ASRTask

    options.token_list, options.normalize, options.specaug = ["<blank>", "<unk>", *"abcd", "<sos/eos>"], None, None
    return ASRTask.build_model(options)


def audio(seconds: tuple[float, ...] = (1.0, 0.8)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([int(16000 * one) for one in seconds])
    text = torch.randint(2, 6, (len(seconds), 3), generator=generator)
    return Batch(
        torch.randn(len(seconds), int(lengths.max()), generator=generator), lengths, text, torch.full_like(lengths, 3)
    )


def test_a_dry_run_trains_it(options: Any) -> None:
    done = dry_run(options, vocabulary=12, seconds=1.0)
    assert set(done.costs) == {"full", "small"}


def test_what_stands_before_the_encoder_learns_unless_it_is_frozen_and_is_counted(options: Any) -> None:
    model = built(options).train()
    assert isinstance(model.subnet_trainer, KDTrainer)
    model.frontend.upstream.requires_grad_(False)
    run(model, audio())[0].backward()
    found = gradients(model)
    assert all((g is None) == name.startswith("frontend.upstream") for name, g in found.items())
    assert found["frontend.featurizer.weights"].any() and found["preencoder.linear_out.weight"].any()
    table = model.component_table()
    assert table.cost(table.full()).params == sum(p.numel() for p in model.parameters())
    assert "frontend.featurizer.weights" in model.outer_state(model.encoder.sizes["small"])


def test_padding_never_changes_a_result_of_it(options: Any) -> None:
    model, of = built(options).eval(), audio()

    def loss(rows: slice) -> Tensor:
        longest = int(of.speech_lengths[rows].max())
        some = Batch(of.speech[rows, :longest], of.speech_lengths[rows], of.text[rows], of.text_lengths[rows])
        return model.run_subnet(model.run_subsampling(some), some, model.encoder.sizes["small"]).loss

    alone = torch.stack([loss(slice(n, n + 1)) for n in range(2)]).mean()
    torch.testing.assert_close(loss(slice(None)), alone)
