"""Multi-head self-attention with removable heads, with or without relative positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.elastic.base import Context, Cut, ElasticModule, KeepIndices, last_linear
from espnet_todm.util.compat import is_captured

_ROWS = ("linear_q.weight", "linear_q.bias", "linear_k.weight", "linear_k.bias", "linear_v.weight", "linear_v.bias")


class ElasticAttention(ElasticModule):
    """Self-attention with ``heads`` heads of ``head_dim``; names as in ESPnet's (RelPosition)MultiHeadedAttention.

    ``relative`` adds the relative position terms of Transformer-XL (arXiv 1901.02860, 3.3). "latest" and "legacy" are
    ESPnet's ``rel_pos_type`` of the same name; for "legacy" see :func:`_legacy_to_absolute`. None or "": no positions.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {
        **{name: Cut(0) for name in (*_ROWS, "linear_pos.weight", "pos_bias_u", "pos_bias_v")},
        "linear_out.weight": Cut(1),
    }
    last: ClassVar[str] = "linear_out"

    def __init__(self, size: int, heads: int, head_dim: int, dropout: float, relative: Optional[str]) -> None:
        super().__init__(heads)
        self.head_dim = head_dim
        self.dropout = dropout
        self.relative = relative
        self.linear_q = nn.Linear(size, heads * head_dim)
        self.linear_k = nn.Linear(size, heads * head_dim)
        self.linear_v = nn.Linear(size, heads * head_dim)
        self.linear_out = nn.Linear(heads * head_dim, size)
        if relative:
            self.linear_pos = nn.Linear(size, heads * head_dim, bias=False)
            self.pos_bias_u = nn.Parameter(torch.empty(heads, head_dim))
            self.pos_bias_v = nn.Parameter(torch.empty(heads, head_dim))
            nn.init.xavier_uniform_(self.pos_bias_u)
            nn.init.xavier_uniform_(self.pos_bias_v)

    def flops(self, frames: int) -> float:
        projections = frames * 4 * self.linear_q.weight.numel()
        products = 2 * frames * frames * self.linear_out.in_features
        if self.relative:  # positions -(T-1) .. T-1 are projected and multiplied with every query; legacy has T
            offsets = frames if self.relative == "legacy" else 2 * frames - 1
            projections += offsets * self.linear_pos.weight.numel()
            products += frames * offsets * self.linear_out.in_features
        return 2.0 * (projections + products)

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        mask = context.mask if context.visible is None else context.visible
        result: Tensor = self(x, context.positions, mask, kept, gates, context.dropout)
        return result

    def forward(
        self,
        x: Tensor,
        positions: Optional[Tensor],
        mask: Tensor,
        kept: KeepIndices = None,
        gates: Optional[Tensor] = None,
        dropout: bool = True,
    ) -> Tensor:
        """x (B, T, D), positions (1, 2T-1, D), legacy ones (1, T, D), or None, mask (B, 1, T) or (B, T, T), true at
        visible frames -> (B, T, D). ``dropout``: false turns it off in training.
        """
        query, key, value = (self._heads(x, f"linear_{name}", kept) for name in "qkv")
        return self._attend(query, key, value, positions, mask, kept, gates, dropout)

    def stream(
        self, x: Tensor, past: Tensor, positions: Optional[Tensor], mask: Tensor, kept: KeepIndices = None
    ) -> tuple[Tensor, Tensor]:
        """A chunk of C frames after L frames of left context, whose keys and values are ``past``.

        x (B, C, D), past (B, L, 2 H head_dim), positions (1, L+2C-1, D) for the offsets L+C-1 .. -(C-1) or None, mask
        (B, 1, L+C) true at visible frames -> (B, C, D), the next chunk's past (B, L, 2 H head_dim).
        """
        query = self._heads(x, "linear_q", kept)
        names = ("linear_k", "linear_v")
        new = [F.linear(x, self.take(f"{n}.weight", kept), self.take(f"{n}.bias", kept)) for n in names]
        window = torch.cat([past, torch.cat(new, dim=-1)], dim=1)  # (B, L+C, 2 H head_dim)
        key, value = (self._split(part) for part in window.chunk(2, dim=-1))
        return self._attend(query, key, value, positions, mask, kept, None), window[:, x.size(1) :]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Optional[Tensor],
        mask: Tensor,
        kept: KeepIndices,
        gates: Optional[Tensor],
        dropout: bool = True,
    ) -> Tensor:
        """query (B, H, T, head_dim), key, value (B, H, S, head_dim), mask (B, 1 or T, S) -> (B, T, D)."""
        scores = self._scores(query, key, positions, mask, kept)
        # In place, like the sum in _scores: these are a model's largest tensors, and new memory costs more than arithmetic.
        scores = scores.masked_fill_(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
        weights = F.dropout(torch.softmax(scores, dim=-1), self.dropout, self.training and dropout)
        context = (weights @ value).transpose(1, 2).flatten(2)  # (B, T, H * head_dim)
        weight, bias = self.take("linear_out.weight", kept), self.linear_out.bias
        return last_linear(context, weight, bias, gates)

    def _heads(self, x: Tensor, name: str, kept: KeepIndices) -> Tensor:
        """x (B, T, D) -> (B, H, T, head_dim)."""
        bias = self.take(f"{name}.bias", kept) if name != "linear_pos" else None
        return self._split(F.linear(x, self.take(f"{name}.weight", kept), bias))

    def _split(self, projected: Tensor) -> Tensor:
        """(B, T, H * head_dim) -> (B, H, T, head_dim)."""
        # Not unflatten: an ONNX export would make all later shapes constant.
        return projected.view(projected.size(0), projected.size(1), -1, self.head_dim).transpose(1, 2)

    def _scores(
        self, query: Tensor, key: Tensor, positions: Optional[Tensor], mask: Tensor, kept: KeepIndices
    ) -> Tensor:
        """query (B, H, T, head_dim), key (B, H, S, head_dim) -> scores (B, H, T, S)."""
        scale = 1 / math.sqrt(self.head_dim)  # of the queries: they are fewer than the scores
        if positions is None:
            return (query * scale) @ key.transpose(-2, -1)
        offset = self._heads(positions, "linear_pos", kept)  # (1, H, 2T-1, head_dim)
        content = ((query + self.take("pos_bias_u", kept).unsqueeze(1)) * scale) @ key.transpose(-2, -1)
        position = ((query + self.take("pos_bias_v", kept).unsqueeze(1)) * scale) @ offset.transpose(-2, -1)
        if self.relative == "legacy":
            return content.add_(_legacy_to_absolute(position, mask.sum(-1, keepdim=True)))
        return content.add_(_relative_to_absolute(position))


def _relative_to_absolute(scores: Tensor) -> Tensor:
    """(B, H, T, S+T-1) indexed by offset S-1 .. -(T-1) -> (B, H, T, S) indexed by key; the last key is the last
    query's.

    With S = T, row i needs the offsets i-j for keys j = 0 .. T-1. This is a window that starts at column T-1-i, one
    further left per row, so a view with rows that are one column shorter. Additional keys, all to the left, add as many
    offsets.
    """
    if is_captured():  # such a view would make the shapes of a graph constant
        return _slipped(scores)
    scores = scores.contiguous()
    batch, heads, frames, offsets = scores.shape
    shape = (batch, heads, frames, offsets - frames + 1)
    strides = (*scores.stride()[:2], offsets - 1, 1)
    return scores.as_strided(shape, strides, scores.storage_offset() + frames - 1)


def _slipped(scores: Tensor) -> Tensor:
    """The result of :func:`_relative_to_absolute` from operations that graphs hold for all shapes.

    With one column of padding the rows have length S+T; read as rows of length S+T-1, each row is shifted by one more
    (Transformer-XL, appendix B).
    """
    batch, heads, frames, offsets = scores.shape
    slipped = F.pad(scores, (1, 0)).view(batch, heads, offsets + 1, frames)[:, :, 1:]
    return slipped.reshape(batch, heads, frames, offsets)[..., : offsets - frames + 1]


def _legacy_to_absolute(scores: Tensor, lengths: Tensor) -> Tensor:
    """(B, H, T, T) by query and place, lengths (B, 1, 1) -> (B, H, T, T) by query i and key j, as in ESPnet's old code.

    It shifts rows like :func:`_relative_to_absolute`, but with T places instead of 2T-1: those of keys to the left,
    starting with the farthest. A key j <= i has the correct place L-1-(i-j). For other keys the shift reads the next
    row: key i+1 has no place, and a key j > i+1 has place j-i-2 of query i+1. L is the length of the utterance. ESPnet
    uses the length of the longest utterance in the batch, so its result for an utterance depends on the other
    utterances.
    """
    frames = scores.size(-1)
    index = torch.arange(frames, device=scores.device)
    query, key = index.unsqueeze(1), index
    left = key <= query
    place = torch.where(left, lengths - 1 - query + key, key - query - 2)  # (B, T, T)
    cell = (torch.where(left, query, query + 1) * frames + place).clamp(
        min=0
    )  # below 0 only where an utterance is empty
    picked = scores.flatten(2).gather(2, cell.flatten(1).unsqueeze(1).expand(-1, scores.size(1), -1))
    return picked.view_as(scores).masked_fill(key == query + 1, 0.0)
