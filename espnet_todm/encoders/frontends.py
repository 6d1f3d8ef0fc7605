"""Input layers of supernets and their costs. They turn features into the subsampled features that all subnets share.

The ``conv2d`` and ``conv1d`` families, ``linear`` and null (features that already have the encoder's width) are ESPnet's.
``vgg4`` is the front end of OrthoSoftmax (arXiv 2501.18895). ``dw_conv2d`` is a ``conv2d`` with a depthwise second
convolution, at a fraction of the cost (FastConformer, arXiv 2305.05084).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Callable, Optional, cast

import torch
from espnet.nets.pytorch_backend.transformer import subsampling
from espnet.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
    Conv2dSubsampling1,
    Conv2dSubsampling2,
    Conv2dSubsampling6,
    Conv2dSubsampling8,
    TooShortUttError,
)
from torch import Tensor, nn

from espnet_todm.components import Cost
from espnet_todm.errors import UserError


@dataclass(frozen=True)
class InputLayer:
    """The constructor of an input layer, and (kernel, stride) along time of its convolutions and poolings in order.

    ``build(input_size, output_size, dropout, position encoding)`` returns a module that takes features (B, T, F) and mask
    (B, 1, T). Its attribute ``conv`` has the convolutions and poolings, if any. Its last part is the position encoding.
    """

    build: Callable[[int, int, float, nn.Module], nn.Module]
    steps: tuple[tuple[int, int], ...]
    slim: bool = True  # whether the width of its convolutions can differ from the encoder's
    windowed: bool = True  # whether frame t depends only on the ``shortest`` input frames from t * stride on

    @property
    def stride(self) -> int:
        """Input frames from one frame to the next."""
        return prod(stride for _, stride in self.steps)

    def subsampled(self, frames: int) -> int:
        """Number of output frames for a number of input frames."""
        for kernel, stride in self.steps:
            frames = max((frames - kernel) // stride + 1, 0)
        return frames

    def lengths(self, lengths: Tensor) -> Tensor:
        """lengths (B,) of the input -> lengths (B,) of the output.

        They are computed from kernels and strides. ESPnet strides its mask instead, so that a padded utterance can have
        one frame more, computed partly from padding, than the same utterance alone.
        """
        for kernel, stride in self.steps:
            lengths = (lengths - kernel + stride).clamp_min(0) // stride  # clamped first: ONNX rounds toward 0
        return lengths

    def shortest(self) -> int:
        """Input frames that are needed for one output frame."""
        frames = 1
        for kernel, stride in reversed(self.steps):
            frames = (frames - 1) * stride + kernel
        return frames

    def make(
        self, input_size: int, size: int, dropout: float, positions: nn.Module, channels: Optional[int] = None
    ) -> nn.Module:
        """Build the module. Its convolutions have ``channels`` channels, by default ``size`` as in ESPnet.

        Raises UserError when ``channels`` is given and this input layer has fixed channels.
        """
        if channels is not None and not self.slim:
            raise UserError(
                f"input_channels: {channels} is not possible with this input layer, whose channels are fixed"
            )
        embed: Any = self.build(input_size, channels or size, dropout, positions)
        out = getattr(embed, "out", None)  # ESPnet's projection has as many outputs as the convolutions have channels
        if isinstance(out, nn.Linear):
            embed.out = nn.Linear(out.in_features, size)
        elif out is not None:
            out[0] = nn.Linear(out[0].in_features, size)
        return cast(nn.Module, embed)

    def check_length(self, frames: int) -> None:
        """Raises ESPnet's TooShortUttError below ``shortest``; ESPnet skips such utterances in decoding."""
        shortest = self.shortest()
        if frames < shortest:
            raise TooShortUttError(
                f"has {frames} frames and is too short for subsampling (it needs {shortest} frames)", frames, shortest
            )


class UnshortenedInput(nn.Sequential):
    """An input layer without subsampling. Its parts have the same names as in ESPnet's nn.Sequential."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Any, None]:  # type: ignore[override]
        """x (B, T, F), mask (B, 1, T) unused -> (B, T, D), or a pair with relative positions."""
        return super().forward(x), None


def linear_input(input_size: int, size: int, dropout: float, positions: nn.Module) -> nn.Module:
    """``input_layer: linear``."""
    return UnshortenedInput(nn.Linear(input_size, size), nn.LayerNorm(size), nn.Dropout(dropout), positions)


def no_input(input_size: int, size: int, dropout: float, positions: nn.Module) -> nn.Module:
    """``input_layer: null``: only a position encoding. Raises UserError unless features have the encoder's width."""
    if input_size != size:
        raise UserError(
            f"input_layer: null takes features of output_size: {size}, but these have {input_size}; say linear"
        )
    return UnshortenedInput(positions)


class DepthwiseSubsampling(nn.Module):
    """ESPnet's conv2d with the second convolution split into 3x3 depthwise and 1x1 convolutions, as in FastConformer.

    At 80 mel bands this saves 8/9 of the multiplications of a layer with nearly half of a small model's cost.
    """

    def __init__(self, input_size: int, size: int, dropout: float, positions: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, size, 3, 2),
            nn.ReLU(),
            nn.Conv2d(size, size, 3, 2, groups=size),
            nn.Conv2d(size, size, 1),
            nn.ReLU(),
        )
        self.out = nn.Sequential(nn.Linear(size * (((input_size - 1) // 2 - 1) // 2), size), positions)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Any, None]:
        """x (B, T, F), mask (B, 1, T) unused -> (B, ((T-1)//2-1)//2, D), or a pair with relative positions."""
        with _no_autocast_on_cpu(x):
            x = self.conv(x.unsqueeze(1))  # (B, D, T', F')
        return self.out(x.transpose(1, 2).flatten(2)), None


class VggSubsampling(nn.Module):
    """conv 32 - conv 64 - ReLU - pool - conv 64 - conv 32 - ReLU - pool - linear, as in RWTH's VGG4LayerActFrontendV1.

    Convolutions are 3x3 and keep the shape. Each pool takes the maximum of two frames, so 10 ms frames become 40 ms frames.
    Padded frames are set to zero before each convolution, so the result equals that of the utterance alone.
    """

    def __init__(self, input_size: int, size: int, dropout: float, positions: nn.Module) -> None:
        super().__init__()
        channels = (1, 32, 64, 64, 32)
        convolutions = [nn.Conv2d(n, m, 3, padding=1) for n, m in zip(channels, channels[1:])]
        halves = [(*convolutions[i : i + 2], nn.ReLU(), nn.MaxPool2d((2, 1))) for i in (0, 2)]
        self.conv = nn.Sequential(*halves[0], *halves[1])
        self.out = nn.Sequential(nn.Linear(channels[-1] * input_size, size), positions)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Any, None]:
        """x (B, T, F), mask (B, 1, T) true at valid frames -> (B, T//4, D), or a pair with relative positions."""
        x, mask = x.unsqueeze(1), mask.unsqueeze(-1)  # (B, 1, T, F), (B, 1, T, 1)
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d):
                x = x.masked_fill(~mask, 0.0)
            elif isinstance(layer, nn.MaxPool2d):
                mask = mask[:, :, 1::2]  # a pooled frame is valid if both its input frames are
            x = layer(x)
        return self.out(x.transpose(1, 2).flatten(2)), None


def _of_one_dimension(name: str) -> Callable[[int, int, float, nn.Module], nn.Module]:
    """Constructor of an ESPnet Conv1dSubsampling. The class is looked up late, because old versions have fewer."""
    return lambda *arguments: getattr(subsampling, name)(*arguments)


INPUT_LAYERS: dict[Optional[str], InputLayer] = {
    "conv2d1": InputLayer(Conv2dSubsampling1, ((3, 1), (3, 1))),
    "conv2d2": InputLayer(Conv2dSubsampling2, ((3, 2), (3, 1))),
    "conv2d": InputLayer(Conv2dSubsampling, ((3, 2), (3, 2))),
    "conv2d6": InputLayer(Conv2dSubsampling6, ((3, 2), (5, 3))),
    "conv2d8": InputLayer(Conv2dSubsampling8, ((3, 2), (3, 2), (3, 2))),
    "conv1d1": InputLayer(_of_one_dimension("Conv1dSubsampling1"), ((3, 1), (3, 1))),
    "conv1d2": InputLayer(_of_one_dimension("Conv1dSubsampling2"), ((3, 1), (3, 2))),
    "conv1d3": InputLayer(_of_one_dimension("Conv1dSubsampling3"), ((3, 1), (5, 3))),
    "linear": InputLayer(linear_input, (), slim=False),
    None: InputLayer(no_input, (), slim=False),
    "dw_conv2d": InputLayer(DepthwiseSubsampling, ((3, 2), (3, 2))),
    "vgg4": InputLayer(VggSubsampling, ((2, 2), (2, 2)), slim=False, windowed=False),
}
# Input layers that all of ESPnet's encoders have, and one-dimensional ones that some have.
STOCK_INPUTS = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear", None)
STOCK_INPUTS_1D = ("conv1d1", "conv1d2", "conv1d3")


def input_names(layers: Iterable[Optional[str]]) -> str:
    """Names of input layers as in a configuration, for error messages."""
    return ", ".join(name or "null" for name in layers)


def encoding_of(embed: nn.Module) -> nn.Module:
    """The position encoding of an input layer: its last part, or ``pos_enc`` of conv2d8 in ESPnet 202511."""
    part: Any = getattr(embed, "pos_enc", None) or getattr(embed, "out", embed)
    return cast(nn.Module, part[-1] if isinstance(part, nn.Sequential) else part)


def subsampling_cost(embed: nn.Module, frames: int, features: int) -> Cost:
    """Parameters of an input layer, and its total FLOPs for one utterance of shape (frames, features)."""
    shape, macs = (frames, features), 0
    for module in getattr(embed, "conv", ()):
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.MaxPool2d)):
            shape = _output_shape(module, shape)
        if isinstance(module, nn.Conv2d):
            macs += shape[0] * shape[1] * module.weight.numel()
        elif isinstance(module, nn.Conv1d):
            macs += shape[0] * module.weight.numel()
    linear = [m.weight.numel() for m in embed.modules() if isinstance(m, nn.Linear)]
    return Cost(sum(p.numel() for p in embed.parameters()), 2.0 * (macs + shape[0] * sum(linear)))


def _output_shape(module: Any, shape: tuple[int, int]) -> tuple[int, int]:
    """(time, width) after a convolution or pooling in one or two dimensions."""
    kernel, stride, padding = (
        value if isinstance(value, tuple) else (value, value)
        for value in (module.kernel_size, module.stride, module.padding)
    )
    time, *rest = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding))
    return time, rest[0] if rest else shape[1]


def _no_autocast_on_cpu(x: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast on CPUs, where a depthwise convolution in bfloat16 is several times slower than in float32."""
    return torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else nullcontext()
