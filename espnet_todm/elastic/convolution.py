"""Conformer convolution module whose channels can be taken out, as a whole or in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.components import FULL
from espnet_todm.elastic.base import Context, Cut, ElasticModule, Kept, last_linear, spread
from espnet_todm.errors import UserError

NORMS = ("batch_norm", "layer_norm")


class ElasticConvolution(ElasticModule):
    """pointwise - GLU - depthwise - norm - activation - pointwise; names as in ESPnet's ConvolutionModule.

    Padded frames are set to zero before the depthwise convolution, so that padding never reaches a valid frame.

    With ``norm="batch_norm"`` subnets differ in their activations' statistics. Each named size therefore keeps running
    statistics of its own (``size_norms``); any other subnet must be recalibrated before it is used.

    Raises UserError for an even kernel, an unknown norm, or ``groups`` that do not divide ``channels``.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {
        "pointwise_conv1.weight": Cut(0, copies=2),
        "pointwise_conv1.bias": Cut(0, copies=2),
        "pointwise_conv2.weight": Cut(1),
        **{f"depthwise_conv.{name}": Cut(0) for name in ("weight", "bias")},
        **{f"norm.{name}": Cut(0) for name in ("weight", "bias", "running_mean", "running_var")},
    }

    def __init__(
        self,
        size: int,
        channels: int,
        groups: int,
        kernel: int,
        norm: str,
        activation: nn.Module,
        sizes: tuple[str, ...] = (),
    ) -> None:
        if kernel % 2 == 0:
            raise UserError(f"cnn_module_kernel: {kernel} is even; an odd kernel is needed to keep the length")
        if norm not in NORMS:
            raise UserError(f"conv_norm: {norm!r} is unknown; allowed: {', '.join(NORMS)}")
        if groups < 1 or channels % groups:
            raise UserError(f"conv_groups: {groups} does not divide the {channels} channels of the convolution module")
        super().__init__(groups)
        self.pointwise_conv1 = nn.Conv1d(size, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.pointwise_conv2 = nn.Conv1d(channels, size, 1)
        self.activation = activation
        self.norm = nn.BatchNorm1d(channels) if norm == "batch_norm" else nn.LayerNorm(channels)
        names = sizes if norm == "batch_norm" else ()
        self.momentum = 0.1  # of the running statistics
        self.size_norms = nn.ModuleDict({name: nn.BatchNorm1d(channels, affine=False) for name in names})

    def flops(self, frames: int) -> float:
        convolutions = (self.pointwise_conv1, self.depthwise_conv, self.pointwise_conv2)
        return 2.0 * frames * sum(convolution.weight.numel() for convolution in convolutions)

    def run(self, x: Tensor, context: Context, kept: Kept, gates: Optional[Tensor]) -> Tensor:
        result: Tensor = self(x, context.mask, kept, gates, context.size)
        return result

    def forward(
        self, x: Tensor, mask: Tensor, kept: Kept = None, gates: Optional[Tensor] = None, size: str = FULL
    ) -> Tensor:
        """x (B, T, D), mask (B, 1, T) true at valid frames -> (B, T, D). ``size`` picks the batch norm statistics."""
        first, last = self.take("pointwise_conv1.weight", kept), self.take("pointwise_conv2.weight", kept)
        # Pointwise convolutions as matrix products on (B, T, C): no transposes around them.
        x = F.glu(F.linear(x, first.squeeze(-1), self.take("pointwise_conv1.bias", kept)), dim=-1)
        weight, bias = self.take("depthwise_conv.weight", kept), self.take("depthwise_conv.bias", kept)
        x = depthwise(x, mask, weight, bias)
        x = self.activation(self._normalise(x, kept, gates, size))
        last, bias = last.squeeze(-1), self.take("pointwise_conv2.bias", kept)
        return last_linear(x, last, bias, gates)

    def sliced_state(self, kept: tuple[int, ...], size: str = FULL) -> dict[str, Tensor]:
        state = {name: value for name, value in super().sliced_state(kept).items() if "size_norms" not in name}
        if size in self.size_norms:
            for name, buffer in self.size_norms[size].named_buffers():
                state[f"norm.{name}"] = self.cut(buffer, Cut(0), kept).clone() if buffer.dim() else buffer.clone()
        return state

    def reordered(self) -> dict[str, Cut]:
        moments = (f"size_norms.{size}.{name}" for size in self.size_norms for name in ("running_mean", "running_var"))
        return {**super().reordered(), **dict.fromkeys(moments, Cut(0))}

    def _normalise(self, x: Tensor, kept: Kept, gates: Optional[Tensor], size: str) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        if isinstance(self.norm, nn.BatchNorm1d):
            return self._batch_norm(x.transpose(1, 2), kept, size).transpose(1, 2)
        weight, bias = self.take("norm.weight", kept), self.take("norm.bias", kept)
        return channel_norm(x, weight, bias, self.norm.eps, gates)

    def _statistics(self, size: str) -> nn.Module:
        """The batch norm whose running statistics the subnet of this name uses."""
        return self.size_norms[size] if size in self.size_norms else self.norm

    def _batch_norm(self, x: Tensor, kept: Kept, size: str) -> Tensor:
        """x (B, C, T) -> (B, C, T)."""
        weight, bias = self.take("norm.weight", kept), self.take("norm.bias", kept)
        owner = self._statistics(size)
        mean, variance = (self.cut(buffer, Cut(0), kept) for buffer in _moments(owner))
        # Subnets that own no statistics pass through without disturbing those of others.
        momentum = self.momentum if owner is not self.norm or size == FULL else 0.0
        x = F.batch_norm(x, mean, variance, weight, bias, self.training, momentum, self.norm.eps)
        if self.training and momentum and kept is not None:  # where the cut was a copy, only the copy was updated
            for buffer, value in zip(_moments(owner), (mean, variance)):
                buffer.unflatten(0, (self.components, -1))[list(kept)] = value.clone().unflatten(0, (len(kept), -1))
        return x


def _moments(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def depthwise(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of x (B, T, C) by its own filter, weight (C, 1, K) of an odd K and bias (C,); padding counts as zero.

    As a 2-D convolution, (B, T, C) is its channels-last layout: no copy, and on a CPU twice as fast as the 1-D
    convolution of (B, C, T).
    """
    padding = (0, weight.size(-1) // 2)
    image = x.masked_fill(~mask.transpose(1, 2), 0.0).transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
    filtered = F.conv2d(image, weight.unsqueeze(2), bias, padding=padding, groups=len(weight))
    return filtered.squeeze(2).transpose(1, 2)


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gates: Optional[Tensor]) -> Tensor:
    """LayerNorm over the channels of x (B, T, C); gates (components,) weight its moments.

    With 0/1 gates the open channels are normalised among themselves, as in the slice.
    """
    if gates is None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    weights = spread(gates, x.size(-1))
    total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    with torch.autocast(x.device.type, enabled=False):  # moments in float32, as LayerNorm's own
        x, shares = x.to(weights.dtype), (weights / total).unsqueeze(-1)
        centred = x - x @ shares  # products with the weights keep nothing of the batch's size for the backward but x
        return torch.addcmul(bias, centred * torch.rsqrt(centred.square() @ shares + eps), weight)
