"""Load trained models strictly: errors name mismatches, and files written by this package are never unpickled."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from safetensors.torch import load_file
from torch import Tensor

from espnet_todm.card import CARD, WEIGHTS, check_weights, read_card
from espnet_todm.errors import UserError, one_line
from espnet_todm.espnet.checkpoint_files import is_training_state, read_checkpoint
from espnet_todm.espnet.config_inheritance import CONFIG, read_yaml
from espnet_todm.espnet.inputs import check_statistics
from espnet_todm.espnet.registry import register
from espnet_todm.util.files import PathLike
from espnet_todm.util.vocabulary import check_record, check_stated

# Options of a training config that name files. A file of the same name beside the config has precedence: extracted folders
# have their own unchanged copies.
FILE_OPTIONS = (("normalize_conf", "stats_file"), (None, "bpemodel"), ("encoder_conf", "latency_table"))


def read_config(path: PathLike) -> dict[str, Any]:
    """Read a config.yaml that ESPnet wrote. Raises UserError if it is missing, damaged, or not such a file."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source}: no such config")
    config = read_yaml(source)
    if not isinstance(config, dict) or "encoder" not in config:
        raise UserError(f"{source}: not a training config of ESPnet: it names no encoder")
    if not isinstance(config.get("token_list", []), list):  # a path is refused: its file may have changed
        raise UserError(f"{source}: token_list: {config['token_list']!r}, but a list of the tokens is expected")
    for key, value in config.items():
        if key.endswith("_conf") and value is not None and not isinstance(value, dict):
            raise UserError(f"{source}: {key}: {value!r}, but a mapping of options is expected")
    for section, key in FILE_OPTIONS:
        owner = config.get(section) or {} if section else config
        value = owner.get(key)
        if not value:
            continue
        beside = source.parent / Path(value).name
        if beside.exists():
            owner[key] = str(beside)
        elif not Path(value).exists():
            raise UserError(f"{source}: {key} names {value}, which is not there")
    return config


def build_model(config: Mapping[str, Any], state: Mapping[str, Tensor], source: PathLike) -> ESPnetASRModel:
    """Build a model in eval mode from config and weights. Raises UserError if weights do not match or are not finite."""
    register()
    from espnet2.tasks.asr import ASRTask

    statistics = (config.get("normalize_conf") or {}).get("stats_file")
    if config.get("normalize") == "global_mvn" and statistics:
        check_statistics(statistics)
    try:
        model = ASRTask.build_model(argparse.Namespace(**config))
    except AttributeError as error:
        lacking = re.search(r"'Namespace' object has no attribute '(\w+)'", str(error))
        if lacking is None:
            raise
        raise _incomplete(source, lacking[1]) from None
    if "token_type" not in config:  # the model does not need it, but decoding does
        raise _incomplete(source, "token_type")
    expected = model.state_dict()
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    shapes = [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    for words, names in (("lacks", missing), ("has, unasked,", unknown), ("has another shape of", shapes)):
        if names:
            raise UserError(
                f"{source} does not fit its config: it {words} {min(names)}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            f"{source}: NaN or Inf in {broken[0]}"
            + (f" and {len(broken) - 1} more" if len(broken) > 1 else "")
            + "; the features or the training were not finite: take an earlier checkpoint"
        )
    model.load_state_dict(dict(state))
    return model.eval()


def _incomplete(source: PathLike, key: str) -> UserError:
    return UserError(f"{source}: its config has no {key}; it is damaged, or not a whole one of ESPnet")


def load_checkpoint(config_path: PathLike, checkpoint: PathLike) -> tuple[ESPnetASRModel, dict[str, Any]]:
    """Load a model and its config from an ESPnet experiment. The checkpoint is read with a restricted unpickler.

    Raises UserError if a file is missing or damaged, or if the two do not match.
    """
    config = read_trained_config(config_path)
    return build_model(config, read_weights(checkpoint), checkpoint), config


def read_trained_config(path: PathLike) -> dict[str, Any]:
    """As :func:`read_config`, for a training. Also raises UserError if the tokens are not those of the training."""
    config = read_config(path)
    check_record(Path(path).parent, config.get("token_list") or (), config.get("bpemodel"), f"{path}: token_list")
    return config


def read_weights(checkpoint: PathLike) -> dict[str, Tensor]:
    """Read the weights of an ESPnet checkpoint (``3epoch.pth``, ``checkpoint.pth``) onto the CPU.

    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    states = read_checkpoint(checkpoint)
    if is_training_state(states):
        states = states["model"]
    if not isinstance(states, dict) or not all(isinstance(value, Tensor) for value in states.values()):
        raise UserError(
            f"{checkpoint}: holds no weights by their names, but other things; give the checkpoint of a model"
        )
    return dict(states)


def load_extracted(directory: PathLike) -> tuple[ESPnetASRModel, dict[str, Any]]:
    """Load a model that :mod:`espnet_todm.deploy.extract` wrote, from its safetensors file.

    Raises UserError as :func:`load_checkpoint`, and if the weights or the tokens are not those of the folder's card.
    """
    weights = Path(directory) / WEIGHTS
    config = read_config(Path(directory) / CONFIG)
    if not weights.is_file():
        raise UserError(f"{weights}: no such file")
    try:
        state = load_file(weights)
    except Exception as error:
        raise UserError(f"{weights}: damaged or no safetensors file ({one_line(error)})") from None
    check_weights(directory)
    _check_card(Path(directory) / CARD, config)
    return build_model(config, state, weights), config


def _check_card(card: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if the folder has a card and the card's token list differs from the config's."""
    if card.is_file():
        check_stated(
            read_card(card)["vocabulary"],
            config.get("token_list") or (),
            None,
            card,
            f"{card.parent / CONFIG}: token_list",
        )
