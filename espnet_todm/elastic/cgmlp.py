"""MLP with convolutional gating (cgMLP; Sakuma et al., ICLR 2022 submission RA-zVvZLYIy) with removable channel groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.elastic.base import Context, Cut, ElasticModule, KeepIndices, adapted, last_linear, share_of
from espnet_todm.elastic.block import LAYER_NORM_EPS
from espnet_todm.elastic.convolution import channel_norm, check_kernel, depthwise
from espnet_todm.errors import UserError


class ElasticCgMlp(ElasticModule):
    """``channel_proj2(dropout(r * gate(conv(norm(g)))))`` with (r, g) the halves of ``gelu(channel_proj1(x))``.

    Parameter names are those of ESPnet's ConvolutionalGatingMLP. A component is a group of channels of r, of g and of
    their product. The norm of g is over the kept channels only, so a slice equals the small module, and gates weight
    its moments (see :func:`espnet_todm.elastic.convolution.channel_norm`). Padded frames of g are zero before the
    convolution.

    Args:
        units: of ``channel_proj1``, twice the number of channels.
        activation: of the gate; nn.Identity() as in the paper.
        adaptive_dropout: the dropout of a slice is ``p * kept / groups``, also after extraction.
        whole: number of units that p refers to, default ``units``.
        linear_after: a linear layer over all channels follows the convolution, so they are one group.

    Raises UserError for more than one group with ``linear_after``, for an even kernel, and if ``groups`` does not
    divide the channels.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {
        "channel_proj1.0.weight": Cut(0, copies=2),
        "channel_proj1.0.bias": Cut(0, copies=2),
        **{f"csgu.{part}.{name}": Cut(0) for part in ("norm", "conv") for name in ("weight", "bias")},
        "channel_proj2.weight": Cut(1),
    }
    last: ClassVar[str] = "channel_proj2"
    norm_name: ClassVar[str] = "csgu.norm"

    def __init__(
        self,
        size: int,
        units: int,
        groups: int,
        kernel: int,
        dropout: float,
        activation: nn.Module,
        adaptive_dropout: bool = True,
        whole: Optional[int] = None,
        linear_after: bool = False,
    ) -> None:
        check_kernel("cgmlp_conv_kernel", kernel)
        if groups < 1 or units % (2 * groups):
            raise UserError(
                f"cgmlp_groups: {groups} cannot cut cgmlp_linear_units: {units}, whose halves they must divide"
            )
        if linear_after and groups > 1:
            raise UserError("use_linear_after_conv: True mixes all channels of a cgMLP; it needs cgmlp_groups: 1")
        super().__init__(groups)
        self.channel_proj1 = nn.Sequential(nn.Linear(size, units), nn.GELU())
        self.csgu = _SpatialGatingUnit(units // 2, kernel, linear_after)
        self.channel_proj2 = nn.Linear(units // 2, size)
        self.dropout = adapted(dropout, units, whole) if adaptive_dropout else dropout
        self.activation = activation
        self.adaptive_dropout = adaptive_dropout

    def flops(self, frames: int) -> float:
        return 2.0 * frames * sum(p.numel() for p in self.parameters() if p.dim() > 1)

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        result: Tensor = self(x, context.mask, kept, gates, context.own_norm, context.dropout)
        return result

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        kept: KeepIndices = None,
        gates: Optional[Tensor] = None,
        own_norm: Optional[nn.Module] = None,
        dropout: bool = True,
    ) -> Tensor:
        """x (B, T, D), mask (B, 1, T) true at valid frames -> (B, T, D). ``own_norm`` as in :meth:`affine`. ``dropout``:
        false turns it off in training.
        """
        weight, bias = self.take("channel_proj1.0.weight", kept), self.take("channel_proj1.0.bias", kept)
        value, gate = F.gelu(F.linear(x, weight, bias)).chunk(2, dim=-1)  # (B, T, C) each
        weight, bias = self.affine(kept, own_norm)
        gate = channel_norm(gate, weight, bias, self.csgu.norm.eps, gates)
        gate = depthwise(gate, mask, self.take("csgu.conv.weight", kept), self.take("csgu.conv.bias", kept))
        if self.csgu.linear is not None:
            gate = self.csgu.linear(gate)
        rate = self.dropout * share_of(kept, self.components) if self.adaptive_dropout else self.dropout
        hidden = F.dropout(value * self.activation(gate), rate, self.training and dropout)
        weight, bias = self.take("channel_proj2.weight", kept), self.channel_proj2.bias
        return last_linear(hidden, weight, bias, gates)


class _SpatialGatingUnit(nn.Module):
    """The parameters of the gate, with the names and the initialisation of ESPnet's ConvolutionalSpatialGatingUnit."""

    def __init__(self, channels: int, kernel: int, linear_after: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.linear = nn.Linear(channels, channels) if linear_after else None

    def espnet_initialization_fn(self) -> None:
        """ESPnet calls this if a configuration has ``init``: gates start open."""
        for layer in (self.conv, self.linear):
            if layer is not None:
                nn.init.normal_(layer.weight, std=1e-6)
                nn.init.ones_(layer.get_parameter("bias"))
