"""What ``model_conf`` of ``model: todm`` may say."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Optional

from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_todm.encoders.catalogue import ENCODERS
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.models.autocast import DTYPES

OUTPUT_LAYERS = ("shared", "per_size")
# Options of ESPnet's ASR model that would need work for which the subnets have no place.
UNSUPPORTED = ("preencoder", "postencoder")
OPTIONS = ("autocast", "output_layers", "transducer_conf")  # beside ESPnet's own; a small model has no use for them


def check_options(autocast: Optional[str], output_layers: str, espnet: Mapping[str, Any]) -> None:
    """Raises UserError for what a supernet cannot have."""
    if not isinstance(espnet.get("encoder"), SupernetEncoder):
        raise UserError(f"model: todm needs a supernet encoder: {', '.join(ENCODERS)}")
    known = list(inspect.signature(ESPnetASRModel).parameters)
    for key in espnet:
        if key not in known:
            raise UserError(
                f"model_conf: unknown key {key!r} for todm; allowed: {', '.join(OPTIONS)}, {', '.join(known)}"
            )
    for part in UNSUPPORTED:
        if espnet.get(part) is not None:
            raise UserError(f"{part}: model: todm cannot have one")
    if espnet.get("interctc_weight"):
        raise UserError(f"interctc_weight: {espnet['interctc_weight']} is not possible in model: todm; allowed: 0")
    if espnet.get("transducer_multi_blank_durations"):
        raise UserError("transducer_multi_blank_durations: model: todm cannot have them")
    if autocast is not None and autocast not in DTYPES:
        raise UserError(f"autocast: {autocast!r} is unknown; allowed: {', '.join(DTYPES)} or leave it out")
    if output_layers not in OUTPUT_LAYERS:
        raise UserError(f"output_layers: {output_layers!r} is unknown; allowed: {', '.join(OUTPUT_LAYERS)}")
