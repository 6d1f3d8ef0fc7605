"""Feed-forward network whose hidden units come in removable chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.elastic.base import Context, Cut, ElasticModule, KeepIndices, adapted, last_linear, share_of
from espnet_todm.errors import UserError


class ElasticFeedForward(ElasticModule):
    """``w_2(dropout(activation(w_1(x))))`` with the parameter names of ESPnet's PositionwiseFeedForward.

    A chunk has both the rows of ``w_1`` and the columns of ``w_2`` of its units. With ``adaptive_dropout`` the dropout
    of a slice is ``p * kept / chunks`` (TODM: narrower layers need less dropout), also after extraction: p is for
    ``whole`` units, default ``hidden``.

    Raises UserError when ``chunks`` does not divide ``hidden``.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {"w_1.weight": Cut(0), "w_1.bias": Cut(0), "w_2.weight": Cut(1)}
    last: ClassVar[str] = "w_2"

    def __init__(
        self,
        size: int,
        hidden: int,
        chunks: int,
        dropout: float,
        activation: nn.Module,
        adaptive_dropout: bool = True,
        whole: Optional[int] = None,
    ) -> None:
        if chunks < 1 or hidden % chunks:
            raise UserError(f"ffn_chunks: {chunks} chunks cannot cut linear_units: {hidden}, which they must divide")
        super().__init__(chunks)
        self.w_1 = nn.Linear(size, hidden)
        self.w_2 = nn.Linear(hidden, size)
        self.dropout = adapted(dropout, hidden, whole) if adaptive_dropout else dropout
        self.activation = activation
        self.adaptive_dropout = adaptive_dropout

    def flops(self, frames: int) -> float:
        return 2.0 * frames * (self.w_1.weight.numel() + self.w_2.weight.numel())

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        result: Tensor = self(x, kept, gates, context.dropout)
        return result

    def forward(
        self, x: Tensor, kept: KeepIndices = None, gates: Optional[Tensor] = None, dropout: bool = True
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). ``dropout``: false turns it off in training."""
        hidden = self.activation(F.linear(x, self.take("w_1.weight", kept), self.take("w_1.bias", kept)))
        rate = self.dropout * share_of(kept, self.components) if self.adaptive_dropout else self.dropout
        hidden = F.dropout(hidden, rate, self.training and dropout)
        weight, bias = self.take("w_2.weight", kept), self.w_2.bias
        return last_linear(hidden, weight, bias, gates)
