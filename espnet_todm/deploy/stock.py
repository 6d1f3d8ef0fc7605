"""Stock ESPnet models as supernets: with all its components a supernet encoder is ESPnet's own, under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet_todm.encoders.known import encoders
from espnet_todm.encoders.supernet import SupernetEncoder

# ESPnet's encoders by their names there -> ours of the same function.
STOCK: dict[str, type[SupernetEncoder]] = {
    encoder.stock_name: encoder for encoder in encoders().values() if encoder.stock_name is not None
}


def as_supernet(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stock model as that of a supernet whose only size is ``full``; any other config as it is.

    So a checkpoint that plain ESPnet trained is extracted, exported and measured like a size of a supernet, and what is
    compared on the way (the slice against ESPnet's own encoder) shows that the two are one before a supernet is trained.
    """
    if config["encoder"] not in STOCK or config.get("model") not in (None, "espnet"):
        return dict(config)
    changes = {"model": "todm", "subnet_trainer": "single", "subnet_trainer_conf": {}}
    return {**config, **changes, "encoder": STOCK[config["encoder"]].name}
