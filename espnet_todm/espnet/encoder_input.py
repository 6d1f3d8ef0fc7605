"""The shortest input that the encoder of a training configuration can use, without ESPnet's parser (10 s to import)."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from espnet_todm.data.checks import Shortest
from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.espnet.options import refuse
from espnet_todm.util.acoustics import FRAME_SAMPLES, FRONTEND, MEL_BINS, WINDOW
from espnet_todm.util.checks import build, check_number

_PARTS = ("encoder", "frontend")


def shortest_input(training: Sequence[str]) -> Shortest:
    """Shortest input for the arguments of the training command, which must have ``--config``.

    Unknown encoders and front ends count as accepting any length. Raises UserError for an invalid configuration or encoder.
    """
    from espnet2.utils.nested_dict_action import NestedDictAction

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--config", required=True)
    for part in _PARTS:
        parser.add_argument(f"--{part}")
        parser.add_argument(f"--{part}_conf", action=NestedDictAction)
    config = read_config(parser.parse_known_args(training)[0].config)
    parser.set_defaults(**{key: config[key] for part in _PARTS for key in (part, f"{part}_conf") if key in config})
    chosen, _ = parser.parse_known_args(training)
    frames = _frames(str(chosen.encoder).lower(), chosen.encoder_conf or {})
    return Shortest(frames, _samples(str(chosen.frontend or "default").lower(), chosen.frontend_conf or {}, frames))


def _frames(encoder: str, conf: Mapping[str, Any]) -> int:
    from espnet_todm.encoders.known import encoders
    from espnet_todm.encoders.options import SUPERNET_OPTIONS

    cls = encoders().get(encoder)
    if cls is None or conf.get("input_layer", "") is None:  # null: frames of the encoder's dimension, no subsampling
        return 1
    own = {key: value for key, value in conf.items() if key not in SUPERNET_OPTIONS}  # sizes may need later files
    return int(build(cls, own, "encoder_conf", input_size=MEL_BINS).shortest())


def _samples(frontend: str, conf: Mapping[str, Any], frames: int) -> int:
    """Number of samples for ``frames`` frames. ESPnet's front end pads both sides by half a window: 1 sample is 1 frame."""
    if frontend == FRONTEND:
        return max(WINDOW, frames * FRAME_SAMPLES - FRAME_SAMPLES // 2)
    if frontend != "default":
        return 1
    from espnet2.asr.frontend.default import DefaultFrontend

    hop = conf.get("hop_length", inspect.signature(DefaultFrontend).parameters["hop_length"].default)
    check_number("frontend_conf.hop_length", hop, at_least=1, whole=True)
    return max((frames - 1) * hop, 1)
