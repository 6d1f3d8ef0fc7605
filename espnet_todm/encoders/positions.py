"""Position encodings by option name, each with the type of attention that uses it."""

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
LONGEST = 5000  # frames in ESPnet's tables by default


@dataclass(frozen=True)
class PositionOptions:
    """Options of position encodings. ``attention``: name of the option for the type of attention; None if the encoder only
    has ``selfattn``, without relative positions."""

    pos_enc_layer_type: str = "rel_pos"

    attention: ClassVar[Optional[str]] = None


class NoPositions(nn.Module):
    """Replaces a position encoding if there is none; only applies dropout."""

    def __init__(self, size: int, dropout: float, max_len: int = LONGEST) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class _SameEachTime(nn.Module):
    """ESPnet's position encoding with results that do not depend on earlier passes.

    ESPnet casts its table to the dtype of each input, so that a bfloat16 pass leaves a rounded table.
    """

    pe: Tensor

    def forward(self, x: Tensor) -> Any:
        table = self.pe = self.pe.to(x.device)
        encoded = super().forward(x)
        if not self.may_keep(table):
            self.pe = table
        return encoded

    def may_keep(self, table: Tensor) -> bool:
        """Whether the new table ``self.pe`` can replace ``table``."""
        return self.pe.dtype == table.dtype


class AbsolutePositions(_SameEachTime, PositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D)."""


class ScaledPositions(_SameEachTime, ScaledPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D)."""


class RelativePositions(_SameEachTime, RelPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D), and (1, 2T-1, D) for the distances T-1 .. -(T-1)."""


class LegacyPositions(_SameEachTime, LegacyRelPositionalEncoding):
    """ESPnet's, (B, T, D) -> (B, T, D), and (1, T, D) for the positions longest-1, longest-2, ... from the table's end.

    An input longer than the table gets a table of its own length. ESPnet keeps that table and encodes all later utterances
    from its end; this class restores the first table.
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
    """The constructor of the position encoding. Raises UserError for an invalid pair of encoding and attention."""
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
    """The kind of relative positions of the attention; None without relative positions."""
    relative = options.pos_enc_layer_type in ("rel_pos", "legacy_rel_pos")
    return getattr(options, "rel_pos_type", None) if relative else None


def _legacy(pair: tuple[str, str]) -> tuple[str, str]:
    """The pair of names that ESPnet uses instead with rel_pos_type: legacy."""
    meant = {"rel_pos": "legacy_rel_pos", "rel_selfattn": "legacy_rel_selfattn"}
    return meant.get(pair[0], pair[0]), meant.get(pair[1], pair[1])
