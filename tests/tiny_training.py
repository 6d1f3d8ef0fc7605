"""An ESPnet training of seconds: random features in a Kaldi archive, characters, a supernet of a few thousand parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import yaml

from tests.tiny_model import TOKENS

UTTERANCES = 12
SUPERNET: dict[str, Any] = {
    "encoder": "todm_conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 2,
        "macaron_style": True,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 5,
        "sizes": {"small": {"depth": 0.5, "ffn": 0.5}},
    },
    "model": "todm",
    "model_conf": {"ctc_weight": 1.0},
    "subnet_trainer": "kd",
}
CONFIG: dict[str, Any] = {
    **SUPERNET,
    "subnet_trainer_conf": {"search_space": {"depth": [0.5, 1.0], "ffn": [0.5, 1.0]}},
    "specaug": "specaug",
    "specaug_conf": {"apply_time_mask": True, "num_time_mask": 1, "time_mask_width_range": [0, 5]},
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 5},
    "batch_type": "unsorted",
    "batch_size": 4,
    "max_epoch": 3,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
}


def write_data(folder: Path) -> Path:
    """feats.scp, text, their shape files, tokens.txt and config.yaml in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    features = {f"utt{n:02d}": rng.standard_normal((60 + n, 20)).astype(np.float32) for n in range(UTTERANCES)}
    kaldiio.save_ark(str(folder / "feats.ark"), features, scp=str(folder / "feats.scp"))
    texts = {name: "".join(rng.choice(list("abcdefg"), 5)) for name in features}
    _table(folder / "text", texts)
    _table(folder / "speech_shape", {name: f"{len(f)},20" for name, f in features.items()})
    _table(folder / "text_shape", {name: f"{len(text)},{len(TOKENS)}" for name, text in texts.items()})
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    write_config(folder / "config.yaml")
    return folder


def _table(path: Path, rows: dict[str, str]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows.items()), encoding="utf-8")


def write_config(path: Path, **changes: Any) -> Path:
    """CONFIG with top-level values replaced, or left out where they are None."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    """Options of asr_train for this data; later ones win."""
    options = ["--config", str(data / "config.yaml"), "--output_dir", str(output), "--ngpu", "0", "--input_size", "20"]
    options += ["--token_list", str(data / "tokens.txt"), "--token_type", "char", "--use_preprocessor", "true"]
    for kind in ("train", "valid"):
        options += [f"--{kind}_data_path_and_name_and_type", f"{data}/feats.scp,speech,kaldi_ark"]
        options += [f"--{kind}_data_path_and_name_and_type", f"{data}/text,text,text"]
        options += [f"--{kind}_shape_file", f"{data}/speech_shape", f"--{kind}_shape_file", f"{data}/text_shape"]
    return [*options, "--resume", "true", *more]


def python(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with one thread, from the root of the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
