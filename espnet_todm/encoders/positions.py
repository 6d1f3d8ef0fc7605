"""Where frames stand: the position encodings that options name, each with the attention that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Callable, Optional

from espnet.nets.pytorch_backend.transformer.embedding import (
    LegacyRelPositionalEncoding,
    PositionalEncoding,
    RelPositionalEncoding,
    ScaledPositionalEncoding,
)
from torch import Tensor, nn

from espnet_todm.errors import UserError

Encoding = Callable[[int, float], nn.Module]  # (size, dropout) -> module

LATEST, LEGACY = "latest", "legacy"
LONGEST = 5000  # frames of ESPnet's tables, as long as no option says otherwise


class NoPositions(nn.Module):
    """Stands in for a position encoding where there is none."""

    def __init__(self, size: int, dropout: float, max_len: int = LONGEST) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class LegacyPositions(LegacyRelPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D), (1, T, D) for the places longest-1, longest-2, ...: from the end of its table.

    An input longer than the table gets one of its own length. ESPnet keeps that, and encodes every later utterance from
    its end; here a result never depends on what ran before.
    """

    pe: Tensor

    def __init__(self, size: int, dropout: float, max_len: int = LONGEST) -> None:
        super().__init__(size, dropout, max_len)
        self.longest = max_len

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        table = self.pe
        encoded: tuple[Tensor, Tensor] = super().forward(x)
        if self.pe.size(1) > self.longest:
            self.pe = table
        return encoded


# (pos_enc_layer_type, type of attention) -> position encoding.
POSITIONS: dict[tuple[str, str], Any] = {
    ("rel_pos", "rel_selfattn"): RelPositionalEncoding,
    ("legacy_rel_pos", "legacy_rel_selfattn"): LegacyPositions,
    ("abs_pos", "selfattn"): PositionalEncoding,
    ("scaled_abs_pos", "selfattn"): ScaledPositionalEncoding,
    ("none", "selfattn"): NoPositions,
}


def position_encoding(options: Mapping[str, Any], attention: str = "selfattention_layer_type") -> Encoding:
    """The class of a position encoding. ``attention`` is the option with the type of attention.

    Raises UserError for a pair that has no meaning together.
    """
    given = options["pos_enc_layer_type"], options[attention]
    pair = _legacy(given) if options.get("rel_pos_type") == LEGACY else given
    legacy = "legacy_rel_pos", "legacy_rel_selfattn"
    if pair not in POSITIONS or (pair == legacy and options.get("rel_pos_type") != LEGACY):
        pairs = "; ".join(" with ".join(pair) for pair in POSITIONS if pair != legacy)
        raise UserError(
            f"pos_enc_layer_type: {given[0]!r} with {attention}: {given[1]!r} is not possible; allowed: {pairs}"
        )
    return partial(POSITIONS[pair], max_len=options.get("max_pos_emb_len") or LONGEST)


def relative_kind(options: Mapping[str, Any]) -> Optional[str]:
    """LATEST or LEGACY where attention sees relative positions, else None."""
    if options["pos_enc_layer_type"] not in ("rel_pos", "legacy_rel_pos"):
        return None
    kind: str = options["rel_pos_type"]
    return kind


def _legacy(pair: tuple[str, str]) -> tuple[str, str]:
    """What ESPnet takes a pair of names for where it says rel_pos_type: legacy."""
    meant = {"rel_pos": "legacy_rel_pos", "rel_selfattn": "legacy_rel_selfattn"}
    return meant.get(pair[0], pair[0]), meant.get(pair[1], pair[1])
