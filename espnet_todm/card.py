"""A card: JSON that describes an extracted subnet and its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from espnet_todm import __version__
from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, hash_file, read_json
from espnet_todm.util.vocabulary import describe

FORMAT = "espnet_todm.card/1"
CARD = "card.json"
WEIGHTS = "model.safetensors"
# Required entries of a card, and those that are mappings.
ENTRIES = ("name", "cost", "encoder", "encoder_conf", "vocabulary", "kept")
MAPPINGS = ("cost", "encoder_conf", "vocabulary")
# Entry with the encoder and its options for training with this package. The weights are those of the stock form, which
# cannot express all options (the dropout of a narrower feed-forward module, layer drop).
TRAINED_AS = "trained_as"


def make_card(
    subnet: Subnet,
    table: ComponentTable,
    encoder: str,
    encoder_conf: Mapping[str, Any],
    tokens: Sequence[str],
    source: Mapping[str, Any],
    encoder_table: Optional[ComponentTable] = None,
) -> dict[str, Any]:
    """The description of a subnet: costs, kept components, dimensions, vocabulary, origin.

    ``table`` is that of the model, ``encoder_table`` that of the encoder alone; the budget of a size is a share of the
    latter. Latency, in seconds of compute per second of speech, is that of the encoder. It is included if it was
    measured.
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
        "vocabulary": describe(tokens),
        "supernet": dict(source),
        "kept": subnet.to_json(),
    }


def read_card(path: PathLike) -> dict[str, Any]:
    """Read a card. Raises UserError if the file is not a card, or lacks a required entry."""
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path}: not a card of format {FORMAT}")
    for key in ENTRIES:
        if key not in card or (key in MAPPINGS and not isinstance(card[key], dict)):
            raise UserError(f"{path}: damaged: {key} is {card.get(key)!r}; extract the size again")
    return card


def identify_weights(path: PathLike) -> dict[str, str]:
    """The entry ``weights`` of a card for a file of weights. It detects that weights and card were mixed up."""
    return {"file": Path(path).name, "sha256": hash_file(path)}


def check_weights(folder: PathLike) -> None:
    """Raises UserError if the SHA-256 of the weights is not that of the folder's card.

    A folder without a card is accepted, and so is an old card without the entry ``weights``.
    """
    card = Path(folder) / CARD
    stated = read_card(card).get("weights") if card.is_file() else None
    if stated is None:
        return
    found = identify_weights(Path(folder) / WEIGHTS)
    if stated != found:
        told = stated.get("sha256") if isinstance(stated, Mapping) else stated
        raise UserError(
            f"{Path(folder) / WEIGHTS}: its SHA-256 is {found['sha256'][:16]}..., but {CARD} says {str(told)[:16]}...; "
            "allowed: the weights that the card was written for"
        )
