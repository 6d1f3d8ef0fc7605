"""A small supernet experiment on disk, as stages 10 and 11 leave it, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import kaldiio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from espnet_todm.deploy.folder import write_weights
from espnet_todm.espnet.load import build_model
from espnet_todm.espnet.registry import register
from espnet_todm.util.files import read_json, write_json, write_table
from tests.conftest import disturb

TOKENS = ["<blank>", "<unk>", "<space>", *"ABCDEFG", "<sos/eos>"]


ENCODERS: dict[str, dict[str, Any]] = {
    "todm_conformer": {"macaron_style": True, "rel_pos_type": "latest", "cnn_module_kernel": 5},
    "todm_e_branchformer": {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 5, "use_ffn": True, "macaron_ffn": True},
    "todm_mh_ssm": {"ssm_state": 4},
    "todm_transformer": {},
}


def change_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Other weights for an extracted model, whose card then knows them: a fault that no digest tells."""
    state = load_file(folder / "model.safetensors")
    stated = write_weights({name: change(name, value) for name, value in state.items()}, folder)
    write_json(folder / "card.json", {**read_json(folder / "card.json"), "weights": stated})


def write_experiment(
    folder: Path,
    encoder: str = "todm_conformer",
    changes: Optional[dict[str, Any]] = None,
    features: int = 20,
    **encoder_conf: Any,
) -> Path:
    """config.yaml, model.pth and feats_stats.npz of an untrained supernet, and three utterances of features."""
    import argparse

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(500, features))
    np.savez(folder / "feats_stats.npz", count=500, sum=frames.sum(0), sum_square=(frames**2).sum(0))
    config = {
        "encoder": encoder,
        "encoder_conf": {
            "output_size": 16,
            "linear_units": 32,
            "num_blocks": 4,
            **ENCODERS[encoder],
            "sizes": {"small": {"depth": 0.5, "ffn": 0.5}, "uneven": {"ffn": [4, 1, 2, 3], "heads": 0.5}},
            **encoder_conf,
        },
        "model": "todm",
        "model_conf": {"ctc_weight": 1.0, "autocast": "bfloat16"},
        "subnet_trainer": "kd",
        "subnet_trainer_conf": {},
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")},
        "token_list": TOKENS,
        "token_type": "char",
        "bpemodel": None,
        "input_size": features,
        "specaug": None,
        "frontend": None,
        "frontend_conf": {},
        "ctc_conf": {},
        "decoder": None,
        "init": None,
        **(changes or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    register()
    from espnet2.tasks.asr import ASRTask

    torch.manual_seed(0)
    model = ASRTask.build_model(argparse.Namespace(**yaml.safe_load(yaml.safe_dump(config))))
    disturb(model.encoder)
    torch.save(model.state_dict(), folder / "model.pth")
    assert build_model(config, model.state_dict(), "memory") is not None
    kaldiio.save_ark(
        str(folder / "feats.ark"),
        {f"utt{n}": rng.normal(size=(60 + 7 * n, features)).astype(np.float32) for n in range(3)},
        scp=str(folder / "feats.scp"),
    )
    write_table(folder / "text", {f"utt{n}": "A B" for n in range(3)})
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


TRANSDUCER = {
    "decoder": "todm_stateless",
    "decoder_conf": {"hidden_size": 12},
    "joint_net_conf": {"joint_space_size": 10},
    "model_conf": {"ctc_weight": 0.3, "transducer_conf": {"prune_range": 3}},
}


@pytest.fixture(scope="module")
def transducer_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("transducer"), changes=TRANSDUCER, conv_norm="layer_norm")


@pytest.fixture(scope="module")
def layer_norm_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("layer_norm"), conv_norm="layer_norm")
