"""Stock ESPnet models as supernets. A full supernet encoder equals ESPnet's encoder, with the same parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet_todm.encoders.known import encoders
from espnet_todm.encoders.supernet import SupernetEncoder

# Name of an ESPnet encoder -> the supernet encoder that computes the same.
STOCK: dict[str, type[SupernetEncoder]] = {
    encoder.stock_name: encoder for encoder in encoders().values() if encoder.stock_name is not None
}


def as_supernet(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the config of a stock model into that of a supernet whose only size is ``full``; copy any other config.

    A checkpoint that plain ESPnet trained can then be extracted, exported and measured like a size of a supernet.
    Extraction compares the slice with ESPnet's own encoder, so it tests their equality before a supernet is trained.
    """
    if config["encoder"] not in STOCK or config.get("model") not in (None, "espnet"):
        return dict(config)
    changes = {"model": "todm", "subnet_trainer": "single", "subnet_trainer_conf": {}}
    return {**config, **changes, "encoder": STOCK[config["encoder"]].name}
