"""What the encoder of a configuration can hear at least, as it says itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_todm.errors import UserError
from espnet_todm.espnet.encoder_input import Shortest, shortest_input
from espnet_todm.models.kaldi_fbank import KaldiFbank

SMALL = {"output_size": 16, "linear_units": 16, "num_blocks": 1, "rel_pos_type": "latest"}


def config(path: Path, conf: dict[str, Any], **more: Any) -> list[str]:
    path.write_text(yaml.safe_dump({"encoder": "todm_conformer", "encoder_conf": {**SMALL, **conf}, **more}))
    return ["--config", str(path)]


@pytest.mark.parametrize(("layer", "frames"), [("conv2d", 7), ("conv2d6", 11), ("vgg4", 4)])
def test_the_encoder_is_asked(tmp_path: Path, layer: str, frames: int) -> None:
    sizes = {"sizes": {"small": {"depth": 0.5}}, "criterion": "latency", "latency_table": "not measured yet"}
    training = config(tmp_path / "a.yaml", {"input_layer": layer, **sizes})
    assert shortest_input(training) == Shortest(frames, (frames - 1) * 128)


def test_bases_and_the_command_line_count(tmp_path: Path) -> None:
    config(tmp_path / "base.yaml", {"input_layer": "conv2d6"}, frontend_conf={"hop_length": 160})
    (tmp_path / "a.yaml").write_text("base: base.yaml\noptim: adam\n")
    training = ["--config", str(tmp_path / "a.yaml"), "--max_epoch", "3"]
    assert shortest_input(training) == Shortest(11, 1600)
    assert shortest_input([*training, "--encoder_conf", "input_layer=conv2d"]) == Shortest(7, 960)
    assert shortest_input([*training, "--frontend", "s3prl"]) == Shortest(11, 1)
    assert shortest_input([*training, "--encoder", "rnn"]) == Shortest(1, 1)


def test_so_many_samples_make_so_many_frames(tmp_path: Path) -> None:
    needed = shortest_input(config(tmp_path / "a.yaml", {}, frontend_conf={"hop_length": 160}))
    frontend = DefaultFrontend(n_fft=512, hop_length=160)
    for samples, frames in ((needed.samples, needed.frames), (needed.samples - 1, needed.frames - 1)):
        _, lengths = frontend(torch.randn(1, samples), torch.tensor([samples]))
        assert lengths.tolist() == [frames]


def test_so_many_samples_make_so_many_frames_of_kaldi(tmp_path: Path) -> None:
    needed = shortest_input([*config(tmp_path / "a.yaml", {}), "--frontend", "todm_fbank"])
    for samples, frames in ((needed.samples, needed.frames), (needed.samples - 1, needed.frames - 1)):
        _, lengths = KaldiFbank()(torch.randn(1, samples), torch.tensor([samples]))
        assert lengths.tolist() == [frames]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (["--config", "none.yaml"], "none.yaml: no such file"),
        (["--max_epoch", "3"], "the following arguments are required: --config"),
    ],
)
def test_a_missing_configuration_is_told(training: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shortest_input(training)


def test_options_that_a_part_cannot_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frontend_conf.hop_length: 'ten' is not allowed"):
        shortest_input(config(tmp_path / "a.yaml", {}, frontend_conf={"hop_length": "ten"}))
    with pytest.raises(UserError, match=r"input_layer: 'conv3d'"):
        shortest_input(config(tmp_path / "a.yaml", {"input_layer": "conv3d"}))
