"""A card: JSON that says what an extracted subnet is and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from espnet_todm import __version__
from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike, read_json

FORMAT = "espnet_todm.card/1"


def make_card(
    subnet: Subnet,
    table: ComponentTable,
    encoder: str,
    encoder_conf: Mapping[str, Any],
    tokens: Sequence[str],
    source: Mapping[str, Any],
    encoder_table: Optional[ComponentTable] = None,
) -> dict[str, Any]:
    """Everything a reader needs to know of a subnet: costs, kept components, dimensions, vocabulary, origin.

    ``table`` is the model's, ``encoder_table`` the encoder's alone, of which a size's budget is a share. Latency, in
    seconds of compute per second of speech, is the encoder's, and there when it has been measured.
    """
    cost, total = table.cost(subnet), table.cost(table.full())
    latency = {"latency_of_encoder": cost.latency} if "latency" in table.criteria else {}
    shares = {c: encoder_table.share(subnet, c) for c in encoder_table.criteria} if encoder_table else {}
    return {
        "format": FORMAT,
        "espnet_todm": __version__,
        "name": subnet.name,
        "cost": {
            "params": cost.params,
            "flops_per_second": cost.flops,
            "share_of_params": cost.params / total.params,
            "share_of_flops": cost.flops / total.flops,
            **latency,
            "encoder_shares": shares,
        },
        "encoder": encoder,
        "encoder_conf": dict(encoder_conf),
        "vocabulary": {"size": len(tokens), "sha256": hash_text("\n".join(tokens))},
        "supernet": dict(source),
        "kept": subnet.to_json(),
    }


def read_card(path: PathLike) -> dict[str, Any]:
    """Read a card. Raises UserError when the file is none."""
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path}: not a card of format {FORMAT}")
    return card


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
