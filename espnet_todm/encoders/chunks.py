"""Masks of frames: the valid ones, and chunk masks of attention for streaming models.

Training draws a chunk size in each step; deployment uses a fixed one.

A frame attends to its own chunk and to a number of frames to the left of that chunk, as in WeNet (Zhang et al., arXiv
2012.05481) and Zipformer. All numbers are encoder frames, after subsampling: 40 ms each with ``conv2d``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

from espnet_todm.encoders.frontends import INPUT_LAYERS, input_names
from espnet_todm.encoders.interctc import CONDITIONING
from espnet_todm.encoders.positions import LEGACY, relative_kind
from espnet_todm.errors import UserError
from espnet_todm.util.checks import build, check_number, check_type

Span = Union[int, tuple[int, int]]  # a number, or [lowest, highest]


@dataclass(frozen=True)
class Chunk:
    """Chunks of ``frames`` frames with a left context of ``left`` frames."""

    frames: int
    left: int

    def visible(self, length: int, device: Optional[torch.device] = None) -> Tensor:
        """(length, length) bool: entry [i, j] is whether frame i attends to frame j."""
        index = torch.arange(length, device=device)
        start = (torch.div(index, self.frames, rounding_mode="floor") * self.frames).unsqueeze(1)
        return (index >= start - self.left) & (index < start + self.frames)


@dataclass(frozen=True)
class ChunkOptions:
    """``encoder_conf: chunk``: the distribution from which each training step draws its chunk.

    Args:
        frames, left: frames of a chunk and of its left context: a number, or [lowest, highest], uniformly distributed.
        full_share: probability of full context, in [0, 1].
        seed: random seed.

    Raises:
        UserError: a value is not allowed.
    """

    frames: Span
    left: Span
    full_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_span("chunk.frames", self.frames, least=1)
        _check_span("chunk.left", self.left, least=0)
        check_number("chunk.full_share", self.full_share, at_least=0, at_most=1)
        check_type("chunk.seed", self.seed, int)

    def draw(self, step: int) -> Optional[Chunk]:
        """The chunk of training step ``step`` (0-based), or None for full context. It is a pure function of (seed, step):
        the same on every rank and after a resume."""
        source = random.Random(f"chunk {self.seed} {step}")
        full, frames, left = source.random(), _pick(source, self.frames), _pick(source, self.left)
        return None if full < self.full_share else Chunk(frames, left)


def parse_chunk_options(value: Any) -> Optional[ChunkOptions]:
    """Parse the option ``chunk``. Raises UserError unless it is null or a mapping of the fields above."""
    if value is None:
        return None
    for key in ("frames", "left") if isinstance(value, Mapping) else ():
        if key not in value:
            raise UserError(f"chunk: lacks {key}, a number of encoder frames or [lowest, highest]")
    options: ChunkOptions = build(ChunkOptions, value, "chunk")
    return options


def parse_chunk(value: Any, key: str = "decode_chunk") -> Optional[Chunk]:
    """Parse the option ``decode_chunk``, [frames, left]. Raises UserError unless it is null or two such numbers."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"{key}: {value!r} must be [frames of a chunk, frames of left context]")
    _check_span(f"{key}[0]", value[0], least=1)
    _check_span(f"{key}[1]", value[1], least=0)
    return Chunk(*value)


def check_streaming(key: str, options: Any) -> None:
    """Raises UserError when an encoder with these options cannot run in chunks. ``key``: the option that asks for it."""
    if getattr(options, CONDITIONING, False):
        raise UserError(f"{key}: {CONDITIONING}: true is not possible in chunks; leave it out")
    if not hasattr(options, "causal"):
        raise UserError(f"{key}: this encoder sees all of an utterance; allowed: todm_conformer, todm_mh_ssm")
    if getattr(options, "bidirectional", False):
        raise UserError(
            f"{key}: needs bidirectional: false, or state spaces would see frames to the right of the chunk"
        )
    if options.use_cnn_module and not options.causal:
        raise UserError(f"{key}: needs causal: true, or the convolution would see frames to the right of the chunk")
    positions = options.pos_enc_layer_type
    if positions not in ("rel_pos", "none"):
        raise UserError(
            f"{key}: pos_enc_layer_type: {positions!r} counts from the start of speech; allowed: rel_pos, none"
        )
    if relative_kind(options) == LEGACY:
        raise UserError(f"{key}: rel_pos_type: 'legacy' counts from the end of speech; say rel_pos_type: latest")
    layer = INPUT_LAYERS.get(options.input_layer)
    if layer is not None and not layer.windowed:
        allowed = input_names(name for name, layer in INPUT_LAYERS.items() if layer.windowed)
        raise UserError(f"{key}: input_layer: {options.input_layer!r} pads inside of speech; allowed: {allowed}")


def _pick(source: random.Random, span: Span) -> int:
    return span if isinstance(span, int) else source.randint(*span)


def _check_span(key: str, value: Any, least: int) -> None:
    """Raises UserError unless ``value`` is a whole number from ``least`` on, or a list of two in ascending order."""
    listed = key.startswith("chunk.") and isinstance(value, (list, tuple))
    bounds = list(value) if listed else [value]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in bounds)
    if not whole or (listed and (len(bounds) != 2 or bounds[0] > bounds[1])):
        form = " or [lowest, highest] of such" if key.startswith("chunk.") else ""
        raise UserError(f"{key}: {value!r} must be a whole number of encoder frames from {least}{form}")


def length_mask(lengths: Tensor, frames: int) -> Tensor:
    """lengths (B,) -> (B, 1, frames) bool, true at valid frames."""
    return (torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)).unsqueeze(1)
