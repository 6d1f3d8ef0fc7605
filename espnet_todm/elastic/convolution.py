"""Conformer convolution module whose channels can be removed, as a whole or in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Optional, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.components import FULL
from espnet_todm.elastic.base import Context, Cut, ElasticModule, KeepIndices, last_linear, spread
from espnet_todm.errors import UserError
from espnet_todm.util.compat import computes_in_bfloat16_on_cpu

Norm = Literal["batch_norm", "layer_norm"]
MOMENTUM = 0.1  # of running statistics in training
NARROW = 16  # channels up to which torch 2.11 hangs in bfloat16, see depthwise


class ElasticConvolution(ElasticModule):
    """pointwise - GLU - depthwise - norm - activation - pointwise; names as in ESPnet's ConvolutionModule.

    Padded frames are set to zero before the depthwise convolution, so padding does not affect valid frames.

    With ``norm="batch_norm"``, activations have different statistics in each subnet. Each named size therefore has its
    own running statistics (``size_norms``). Any other subnet must be calibrated before use.

    With ``causal``, padding is on the left only: a frame depends on itself and the kernel - 1 frames before it.

    Raises UserError for an even kernel, an unknown norm, or if ``groups`` does not divide ``channels``.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {
        "pointwise_conv1.weight": Cut(0, copies=2),
        "pointwise_conv1.bias": Cut(0, copies=2),
        "pointwise_conv2.weight": Cut(1),
        **{f"depthwise_conv.{name}": Cut(0) for name in ("weight", "bias")},
        **{f"norm.{name}": Cut(0) for name in ("weight", "bias", "running_mean", "running_var")},
    }
    last: ClassVar[str] = "pointwise_conv2"
    norm_name: ClassVar[str] = "norm"

    def __init__(
        self,
        size: int,
        channels: int,
        groups: int,
        kernel: int,
        norm: Norm,
        activation: nn.Module,
        sizes: tuple[str, ...] = (),
        causal: bool = False,
    ) -> None:
        check_kernel("cnn_module_kernel", kernel)
        if norm not in get_args(Norm):
            raise UserError(f"conv_norm: {norm!r} is unknown; allowed: {', '.join(get_args(Norm))}")
        if groups < 1 or channels % groups:
            raise UserError(f"conv_groups: {groups} does not divide the {channels} channels of the convolution module")
        super().__init__(groups)
        self.causal = causal
        self.pointwise_conv1 = nn.Conv1d(size, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.pointwise_conv2 = nn.Conv1d(channels, size, 1)
        self.activation = activation
        self.norm = nn.BatchNorm1d(channels) if norm == "batch_norm" else nn.LayerNorm(channels)
        names = sizes if norm == "batch_norm" else ()
        self.momentum = MOMENTUM
        self.size_norms = nn.ModuleDict({name: nn.BatchNorm1d(channels, affine=False) for name in names})

    def average_over(self, passes: int) -> None:
        """Set the running statistics to the mean over the next pass and the ``passes - 1`` before it, for calibration.
        Puts the module into training mode.
        """
        self.train()
        self.momentum = 1 / passes

    def flops(self, frames: int) -> float:
        convolutions = (self.pointwise_conv1, self.depthwise_conv, self.pointwise_conv2)
        return 2.0 * frames * sum(convolution.weight.numel() for convolution in convolutions)

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        result: Tensor = self(x, context.mask, kept, gates, context.size, context.own_norm)
        return result

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        kept: KeepIndices = None,
        gates: Optional[Tensor] = None,
        size: str = FULL,
        own_norm: Optional[nn.Module] = None,
    ) -> Tensor:
        """x (B, T, D), mask (B, 1, T) true at valid frames -> (B, T, D). ``size`` selects the batch norm statistics,
        ``own_norm`` weight and bias as in :meth:`affine`.
        """
        weight, bias = self.take("depthwise_conv.weight", kept), self.take("depthwise_conv.bias", kept)
        padding = (weight.size(-1) - 1, 0) if self.causal else None
        filtered = depthwise(self._before(x, kept), mask, weight, bias, padding)
        return self._after(filtered, kept, gates, size, own_norm)

    def stream(
        self,
        x: Tensor,
        past: Tensor,
        kept: KeepIndices = None,
        size: str = FULL,
        own_norm: Optional[nn.Module] = None,
    ) -> tuple[Tensor, Tensor]:
        """A chunk of a causal module: x (B, C, D) and ``past`` (B, K-1, channels), the inputs of the depthwise
        convolution for the K-1 frames before it -> (B, C, D), the next chunk's past. ``past`` is zero before the first
        frame of speech.
        """
        weight, bias = self.take("depthwise_conv.weight", kept), self.take("depthwise_conv.bias", kept)
        window = torch.cat([past, self._before(x, kept)], dim=1)
        filtered = F.conv1d(window.transpose(1, 2), weight, bias, groups=len(weight)).transpose(1, 2)
        return self._after(filtered, kept, None, size, own_norm), window[:, x.size(1) :]

    def _before(self, x: Tensor, kept: KeepIndices) -> Tensor:
        """x (B, T, D) -> input of the depthwise convolution, (B, T, C)."""
        # Pointwise convolutions as matrix products on (B, T, C): no transposes around them.
        weight, bias = self.take("pointwise_conv1.weight", kept), self.take("pointwise_conv1.bias", kept)
        return F.glu(F.linear(x, weight.squeeze(-1), bias), dim=-1)

    def _after(
        self, x: Tensor, kept: KeepIndices, gates: Optional[Tensor], size: str, own_norm: Optional[nn.Module]
    ) -> Tensor:
        """x (B, T, C), output of the depthwise convolution -> (B, T, D)."""
        x = self.activation(self._normalise(x, kept, gates, size, own_norm))
        weight, bias = self.take("pointwise_conv2.weight", kept), self.take("pointwise_conv2.bias", kept)
        return last_linear(x, weight.squeeze(-1), bias, gates)

    def sliced_state(self, kept: tuple[int, ...], size: str = FULL) -> dict[str, Tensor]:
        state = {name: value for name, value in super().sliced_state(kept).items() if "size_norms" not in name}
        if size in self.size_norms:
            for name, buffer in self.size_norms[size].named_buffers():
                state[f"norm.{name}"] = self.cut(buffer, Cut(0), kept).clone() if buffer.dim() else buffer.clone()
        return state

    def reordered(self) -> dict[str, Cut]:
        moments = (f"size_norms.{size}.{name}" for size in self.size_norms for name in ("running_mean", "running_var"))
        return {**super().reordered(), **dict.fromkeys(moments, Cut(0))}

    def _normalise(
        self, x: Tensor, kept: KeepIndices, gates: Optional[Tensor], size: str, own_norm: Optional[nn.Module]
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        weight, bias = self.affine(kept, own_norm)
        if isinstance(self.norm, nn.BatchNorm1d):
            return self._batch_norm(x.transpose(1, 2), weight, bias, kept, size).transpose(1, 2)
        return channel_norm(x, weight, bias, self.norm.eps, gates)

    def _statistics(self, size: str) -> nn.Module:
        """The batch norm with the running statistics of the subnet ``size``."""
        return self.size_norms[size] if size in self.size_norms else self.norm

    def _batch_norm(self, x: Tensor, weight: Tensor, bias: Tensor, kept: KeepIndices, size: str) -> Tensor:
        """x (B, C, T), weight and bias (C,) -> (B, C, T)."""
        owner = self._statistics(size)
        mean, variance = (self.cut(buffer, Cut(0), kept) for buffer in _moments(owner))
        # A single frame has no variance: torch raises an error for it, and it must not change the running statistics.
        if not self.training or x.size(0) * x.size(2) == 1:
            return F.batch_norm(x, mean, variance, weight, bias, eps=self.norm.eps)
        if owner is self.norm and size != FULL:  # an unnamed subnet has no statistics to update
            return F.batch_norm(x, None, None, weight, bias, True, eps=self.norm.eps)
        # Copies: the backward needs its inputs unchanged, and values that are not finite must not reach the buffers.
        mean, variance = mean.clone(), variance.clone()
        x = F.batch_norm(x, mean, variance, weight, bias, True, self.momentum, self.norm.eps)
        self._store(owner, mean, variance, kept)
        return x

    @torch.no_grad()
    def _store(self, owner: nn.Module, mean: Tensor, variance: Tensor, kept: KeepIndices) -> None:
        """Set the running statistics (C,) of the kept channels. A channel keeps its old values if the new ones are not
        finite, since one NaN utterance would stay in them forever. This is decided on the device, without
        synchronisation.
        """
        finite = mean.isfinite() & variance.isfinite()
        for buffer, new in zip(_moments(owner), (mean, variance)):
            parts = buffer.unflatten(0, (self.components, -1))
            stored = torch.where(finite, new, self.cut(buffer, Cut(0), kept)).unflatten(0, (-1, parts.size(1)))
            if kept is None:
                parts.copy_(stored)
            else:
                parts.index_copy_(0, self._index(kept, buffer.device), stored)


def _moments(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def check_kernel(name: str, kernel: int) -> None:
    """Raises UserError if the option ``name`` is an even number of frames."""
    if kernel % 2 == 0:
        raise UserError(f"{name}: {kernel} is even; an odd kernel is needed to keep the length")


def depthwise(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, padding: Optional[tuple[int, int]] = None
) -> Tensor:
    """Filters each channel of x (B, T, C) with weight (C, 1, K) of an odd K and bias (C,); padding counts as zero.

    ``padding``: frames before the first and after the last one, K-1 together; by default the same number on both sides.

    For a 2-D convolution, (B, T, C) is the channels-last layout: it needs no copy, and on a CPU it is twice as fast as
    the 1-D convolution of (B, C, T). The exception is a few channels in bfloat16 on a CPU, where torch's libraries may
    hang.
    """
    image = x.masked_fill(~mask.transpose(1, 2), 0.0)
    if padding is not None:
        image = F.pad(image, (0, 0, *padding))
    both = 0 if padding is not None else weight.size(-1) // 2
    if len(weight) <= NARROW and computes_in_bfloat16_on_cpu(x):
        return F.conv1d(image.transpose(1, 2), weight, bias, padding=both, groups=len(weight)).transpose(1, 2)
    image = image.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
    filtered = F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, both), groups=len(weight))
    return filtered.squeeze(2).transpose(1, 2)


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gates: Optional[Tensor]) -> Tensor:
    """LayerNorm over the channels of x (B, T, C); gates (components,) weight its moments.

    With 0/1 gates, only the open channels are normalised, as in the slice.
    """
    if gates is None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    weights = spread(gates, x.size(-1))
    total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    with torch.autocast(x.device.type, enabled=False):  # moments in float32, as in LayerNorm
        x, shares = x.to(weights.dtype), (weights / total).unsqueeze(-1)
        centred = x - x @ shares  # for products with the weights, the backward only keeps x
        return torch.addcmul(bias, centred * torch.rsqrt(centred.square() @ shares + eps), weight)
