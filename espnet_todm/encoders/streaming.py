"""Streaming encoder: runs a causal model chunk by chunk. Four tensors hold its caches.

A chunk of C frames is computed from the caches and a window of input frames. Successive windows overlap by the context that
the input layer needs beyond its stride. The output equals that of the encoder on the whole utterance under the mask of the
same chunks (:mod:`espnet_todm.encoders.chunks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

import torch
from espnet.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from torch import Tensor, nn

from espnet_todm.components import Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import Context
from espnet_todm.elastic.block import ElasticBlock, LayerChoice
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.elastic.state_space import ElasticStateSpace
from espnet_todm.encoders.chunks import Chunk, check_streaming
from espnet_todm.encoders.frontends import encoding_of
from espnet_todm.encoders.stack import StackedEncoder


class Caches(NamedTuple):
    """Caches of earlier chunks. The last axis concatenates the layers, each with its width in the subnet.

    ``attention`` (B, L, A): keys and values of the left context's frames, A = sum over layers of 2 heads * head_dim.
    ``convolution`` (B, K-1, W): inputs of the filters, W = sum over layers of channels; zero before the first frame.
    ``state`` (B, S) float32: states of state spaces, see :meth:`ElasticStateSpace.stream`; zero before the first frame.
    ``frames`` (B,) int64: number of valid frames among the L; the last ones are valid.
    """

    attention: Tensor
    convolution: Tensor
    state: Tensor
    frames: Tensor


STREAMED = (ElasticAttention, ElasticConvolution, ElasticStateSpace)  # modules with a cache, in the order of Caches


class StreamingEncoder(nn.Module):
    """Streaming encoder for one subnet of a chunk-trained Conformer or a causal state space encoder, or for an extracted
    one. It shares their weights.

    Raises UserError when the encoder cannot stream, see :func:`espnet_todm.encoders.chunks.check_streaming`.
    """

    def __init__(self, encoder: StackedEncoder, chunk: Chunk, subnet: Optional[Subnet] = None) -> None:
        super().__init__()
        check_streaming("streaming", encoder.options)
        self.encoder, self.chunk = encoder, chunk
        self.subnet = subnet or encoder.subnet
        layers = self.subnet.layers
        self.kept = [layers.get(layer, {}) for layer in range(len(encoder.encoders))]
        # At least 1: runtimes do not support empty tensors.
        self.attention_width = max(sum(self._widths(ElasticAttention)), 1)
        self.convolution_width = max(sum(self._widths(ElasticConvolution)), 1)
        self.state_width = max(sum(self._widths(ElasticStateSpace)), 1)
        encoding = encoding_of(encoder.embed)
        self.relative = isinstance(encoding, RelPositionalEncoding)
        if self.relative:
            positions = relative_positions(encoding, chunk.left + chunk.frames, chunk.frames)
            self.register_buffer("positions", positions.clone(), persistent=False)

    @property
    def shift(self) -> int:
        """Input frames from one chunk to the next."""
        return self.chunk.frames * self.encoder.input_layer.stride

    @property
    def window(self) -> int:
        """Number of input frames from which a chunk is computed."""
        return (self.chunk.frames - 1) * self.encoder.input_layer.stride + self.encoder.input_layer.shortest()

    @property
    def memory(self) -> int:
        """Frames in a convolution's cache, K-1."""
        return int(self.encoder.options.cnn_module_kernel) - 1

    def initial(self, batch: int) -> Caches:
        """Caches before the first frame, for ``batch`` utterances."""
        parameter = next(self.encoder.parameters())
        return Caches(
            parameter.new_zeros(batch, self.chunk.left, self.attention_width),
            parameter.new_zeros(batch, self.memory, self.convolution_width),
            parameter.new_zeros(batch, self.state_width),
            torch.zeros(batch, dtype=torch.int64, device=parameter.device),
        )

    def forward(self, features: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
        """A window of normalised features (B, ``window``, F), caches -> the chunk's output (B, C, D), new caches.

        A shorter window at the end of an utterance gives fewer output frames.
        """
        embedded, _ = self.encoder.embed(features, features.new_ones(1, 1, features.size(1), dtype=torch.bool))
        hidden = embedded[0] if isinstance(embedded, tuple) else embedded
        frames, left = int(hidden.size(1)), self.chunk.left  # an int also in tracing: the graph's chunk is fixed
        positions = self._positions(frames)
        place = torch.arange(left + frames, device=hidden.device)
        mask = (place >= left - caches.frames.unsqueeze(1)).unsqueeze(1)  # (B, 1, L+C)
        past = {kind: _Parts(cache) for kind, cache in zip(STREAMED, caches)}
        for layer, (block, kept) in enumerate(zip(self.encoder.encoders, self.kept)):
            if kept:
                choice = LayerChoice(kept, size=self.subnet.name, own=self.encoder.own.block(self.subnet.name, layer))
                hidden = self._block(block, hidden, positions, mask, choice, past)  # type: ignore[arg-type]
        seen = (caches.frames + frames).clamp(max=left)
        attention, convolution, state = (parts.joined() for parts in past.values())
        return self.encoder.output_norm(hidden, self.subnet.name), Caches(attention, convolution, state, seen)

    def utterance(self, features: Tensor) -> Iterator[Tensor]:
        """Whole utterances of equal length (B, T, F) -> outputs (B, C, D) of successive chunks; the last may be shorter."""
        caches, start = self.initial(len(features)), 0
        while start + self.encoder.input_layer.shortest() <= features.size(1):
            output, caches = self(features[:, start : start + self.window], caches)
            yield output
            start += self.shift

    def _positions(self, frames: int) -> Optional[Tensor]:
        """(1, L+2n-1, D) for the offsets L+n-1 .. -(n-1) of a chunk of n <= C frames; None without relative positions."""
        if not self.relative:
            return None
        positions, spare = self.get_buffer("positions"), self.chunk.frames - frames
        return positions[:, spare : positions.size(1) - spare] if spare else positions

    def _block(
        self,
        block: ElasticBlock,
        x: Tensor,
        positions: Optional[Tensor],
        mask: Tensor,
        choice: LayerChoice,
        past: Mapping[type, _Parts],
    ) -> Tensor:
        """Run one block, x (B, C, D) -> (B, C, D). It takes its part of each cache and appends that of the next chunk."""
        own = choice.own
        for slot in (slot for slot in block.order if choice.keeps(slot.name)):
            module, components = getattr(block, slot.name), (choice.kept or {})[slot.name]
            running = None if len(components) == module.components else components  # all kept: no slicing
            parts = next((past[kind] for kind in STREAMED if isinstance(module, kind)), None)
            if parts is None:
                x = x + block.branch(x, slot, choice, Context(None, mask, self.subnet.name))
                continue
            normed, cache = block.normed(slot.norm, x, own), parts.take(_width(module, components))
            if isinstance(module, ElasticAttention):
                branch, cache = module.stream(normed, cache, positions, mask, running)
            elif isinstance(module, ElasticConvolution):
                own_norm = own.norm(f"{slot.name}.{module.norm_name}") if own is not None else None
                branch, cache = module.stream(normed, cache, running, self.subnet.name, own_norm)
            else:
                branch, cache = module.stream(normed, cache, running)
            parts.leave(cache)
            x = x + (branch if own is None else own.scaled(slot.name, branch))
        return block.normed("norm_final", x, own) if hasattr(block, "norm_final") else x

    def _widths(self, kind: type) -> list[int]:
        """Width of the cache of each module of this type."""
        return [
            _width(module, kept[name])  # type: ignore[arg-type]
            for block, kept in zip(self.encoder.encoders, self.kept)
            for name, _, module in block.elastic_modules()  # type: ignore[operator]
            if isinstance(module, kind) and kept.get(name)
        ]


class _Parts:
    """A cache (..., width) from which layers take their parts in order, and the parts of the next chunk's cache."""

    def __init__(self, cache: Tensor) -> None:
        self.cache, self.taken = cache, 0
        self.left: list[Tensor] = []

    def take(self, width: int) -> Tensor:
        part = self.cache[..., self.taken : self.taken + width]
        self.taken += width
        return part

    def leave(self, part: Tensor) -> None:
        self.left.append(part)

    def joined(self) -> Tensor:
        """The next chunk's cache (..., width); unchanged for a subnet without such a module."""
        return torch.cat(self.left, dim=-1) if self.left else self.cache


def relative_positions(encoding: RelPositionalEncoding, keys: int, queries: int) -> Tensor:
    """(1, keys + queries - 1, D) from ESPnet's table, for the offsets keys-1 .. -(queries-1) from a query back to a key."""
    encoding.extend_pe(torch.zeros(1, keys))
    middle = encoding.pe.size(1) // 2  # index of offset 0
    return encoding.pe[:, middle - (keys - 1) : middle + queries]


def _width(module: nn.Module, kept: tuple[int, ...]) -> int:
    """Width of the cache of a module with these components."""
    if isinstance(module, ElasticStateSpace):
        return module.stream_width(len(kept))
    last: Tensor = getattr(module, "linear_out" if isinstance(module, ElasticAttention) else "pointwise_conv2").weight
    channels = last.size(1) // int(module.components) * len(kept)  # type: ignore[arg-type]
    return 2 * channels if isinstance(module, ElasticAttention) else channels  # keys and values
