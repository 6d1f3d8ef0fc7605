"""Where frames stand: the position encodings that options name, each with the attention that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, ClassVar, Literal, Optional

from espnet.nets.pytorch_backend.transformer.embedding import (
    LegacyRelPositionalEncoding,
    PositionalEncoding,
    RelPositionalEncoding,
    ScaledPositionalEncoding,
)
from torch import Tensor, nn

from espnet_todm.errors import UserError

Encoding = Callable[[int, float], nn.Module]  # (size, dropout) -> module

Relative = Literal["latest", "legacy"]
LEGACY: Relative = "legacy"
LONGEST = 5000  # frames of ESPnet's tables, as long as no option says otherwise


@dataclass(frozen=True)
class PositionOptions:
    """Options of an encoder for where frames stand. ``attention`` is the option with the type of attention; None: there is
    one type, which sees no positions."""

    pos_enc_layer_type: str = "rel_pos"

    attention: ClassVar[Optional[str]] = None


class NoPositions(nn.Module):
    """Stands in for a position encoding where there is none."""

    def __init__(self, size: int, dropout: float, max_len: int = LONGEST) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class _SameEachTime(nn.Module):
    """A position encoding of ESPnet's whose results do not depend on what ran before.

    ESPnet casts its table to the type of each input, so that a pass in bfloat16 leaves a rounded one.
    """

    pe: Tensor

    def forward(self, x: Tensor) -> Any:
        table = self.pe = self.pe.to(x.device)
        encoded = super().forward(x)
        if not self.may_keep(table):
            self.pe = table
        return encoded

    def may_keep(self, table: Tensor) -> bool:
        """Whether what took the place of ``table`` serves as well."""
        return self.pe.dtype == table.dtype


class AbsolutePositions(_SameEachTime, PositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D)."""


class ScaledPositions(_SameEachTime, ScaledPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D)."""


class RelativePositions(_SameEachTime, RelPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D), (1, 2T-1, D) for the distances T-1 .. -(T-1)."""


class LegacyPositions(_SameEachTime, LegacyRelPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D), (1, T, D) for the places longest-1, longest-2, ...: from the end of its table.

    An input longer than the table gets one of its own length. ESPnet keeps that, and encodes every later utterance from
    its end.
    """

    def __init__(self, size: int, dropout: float, max_len: int = LONGEST) -> None:
        super().__init__(size, dropout, max_len)
        self.longest = max_len

    def may_keep(self, table: Tensor) -> bool:
        return super().may_keep(table) and self.pe.size(1) == table.size(1)


# (pos_enc_layer_type, type of attention) -> position encoding.
POSITIONS: dict[tuple[str, str], Any] = {
    ("rel_pos", "rel_selfattn"): RelativePositions,
    ("legacy_rel_pos", "legacy_rel_selfattn"): LegacyPositions,
    ("abs_pos", "selfattn"): AbsolutePositions,
    ("scaled_abs_pos", "selfattn"): ScaledPositions,
    ("none", "selfattn"): NoPositions,
}


def position_encoding(options: PositionOptions) -> Encoding:
    """The class of a position encoding. Raises UserError for a pair that has no meaning together."""
    attention, kind = options.attention, getattr(options, "rel_pos_type", None)
    given = options.pos_enc_layer_type, getattr(options, attention) if attention else "selfattn"
    pair = _legacy(given) if kind == LEGACY else given
    legacy = "legacy_rel_pos", "legacy_rel_selfattn"
    if pair not in POSITIONS or (pair == legacy and kind != LEGACY):
        if attention is None:
            alone = ", ".join(positions for positions, kind in POSITIONS if kind == "selfattn")
            raise UserError(f"pos_enc_layer_type: {given[0]!r} is not possible; allowed: {alone}")
        pairs = "; ".join(" with ".join(pair) for pair in POSITIONS if pair != legacy)
        raise UserError(
            f"pos_enc_layer_type: {given[0]!r} with {attention}: {given[1]!r} is not possible; allowed: {pairs}"
        )
    return partial(POSITIONS[pair], max_len=getattr(options, "max_pos_emb_len", None) or LONGEST)


def relative_kind(options: PositionOptions) -> Optional[Relative]:
    """The kind of relative positions that attention sees, None without."""
    relative = options.pos_enc_layer_type in ("rel_pos", "legacy_rel_pos")
    return getattr(options, "rel_pos_type", None) if relative else None


def _legacy(pair: tuple[str, str]) -> tuple[str, str]:
    """What ESPnet takes a pair of names for where it says rel_pos_type: legacy."""
    meant = {"rel_pos": "legacy_rel_pos", "rel_selfattn": "legacy_rel_selfattn"}
    return meant.get(pair[0], pair[0]), meant.get(pair[1], pair[1])
