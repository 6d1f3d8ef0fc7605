"""The graph of a streaming encoder, as a torch module: one chunk per run, with the caches of sherpa-onnx's ``zipformer2``.

Of sherpa-onnx's online CTC types, only this one computes the features of training: Kaldi's, of samples in [-1, 1]. NeMo's
type computes other features, and WeNet's scales samples differently. Online transducers may be of this type, too. It needs
the caches of Zipformer layers, with sizes from the metadata. All layers of the model share the caches of one such layer:
attention uses the key cache. The two convolution caches, concatenated, hold those of the convolutions and the states of
state spaces. So a subnet with different widths per layer wastes no space. Unused caches have width 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from espnet_todm.decode.text import forbidden_tokens
from espnet_todm.deploy.onnx.graph import check_parts, mean_and_scale, without
from espnet_todm.deploy.onnx.state_space import replace
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.encoders.streaming import Caches, StreamingEncoder
from espnet_todm.errors import UserError

EMBED_CACHE = (128, 3, 19)  # of Zipformer's input layer; the runtime always uses this size
ROWS = 2  # of the convolution caches: the fewest for which Zipformer's nonlinear attention cache has one column
CACHES = ("key", "nonlin_attn", "val1", "val2", "conv1", "conv2", "embed_states", "processed_lens")


class StreamingGraph(nn.Module):
    """Features of a chunk and the runtime's caches -> output of the chunk, caches for the next chunk.

    head: computes the output from the encoder's, (N, C, D) -> (N, C, V) log probabilities of CTC, or (N, C, J) for a joiner.
    """

    def __init__(self, encoder: StreamingEncoder, normalize: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.filtered = encoder.memory * encoder.convolution_width
        self.remembered = self.filtered + encoder.state_width
        self.columns = -(-self.remembered // (2 * ROWS))
        shift, scale = mean_and_scale(normalize)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def initial(self, batch: int) -> tuple[Tensor, ...]:
        """The runtime's caches before the first chunk, all zero: (L, N, A), (1, N, L, 1), (L, N, 1) twice, (N, ROWS,
        columns) twice, (N, 128, 3, 19) in float32, and the number of earlier frames, at most L, (N,) int64."""
        left = self.encoder.chunk.left
        sizes = [(left, batch, self.encoder.attention_width), (1, batch, left, 1), *2 * [(left, batch, 1)]]
        sizes += [*2 * [(batch, ROWS, self.columns)], (batch, *EMBED_CACHE)]
        return (*map(torch.zeros, sizes), torch.zeros(batch, dtype=torch.int64))

    def metadata(self) -> dict[str, Any]:
        """Metadata from which sherpa-onnx derives the caches of :meth:`initial` and the feature frames of each chunk."""
        return {
            "model_type": "zipformer2",
            "T": self.encoder.window,
            "decode_chunk_len": self.encoder.shift,
            "num_encoder_layers": 1,
            "num_heads": 1,
            "query_head_dims": self.encoder.attention_width,
            "value_head_dims": 1,
            "encoder_dims": ROWS,
            "cnn_module_kernels": 2 * self.columns,
            "left_context_len": self.encoder.chunk.left,
        }

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Kaldi features x (N, window, F) float32, caches as in :meth:`initial` -> output (N, C, V or J), new caches."""
        key, nonlinear, first_values, second_values, first, second, embedding, frames = caches
        together = torch.cat([first.flatten(1), second.flatten(1)], dim=1)
        filtered = together[:, : self.filtered].view(-1, self.encoder.memory, self.encoder.convolution_width)
        state = together[:, self.filtered : self.remembered]
        normalised = (x - self.get_buffer("shift")) * self.get_buffer("scale")
        encoded, after = self.encoder(normalised, Caches(key.transpose(0, 1), filtered, state, frames))
        together = torch.cat([after.convolution.flatten(1), after.state], dim=1)
        together = nn.functional.pad(together, (0, 2 * ROWS * self.columns - self.remembered))
        first, second = together.view(-1, 2, ROWS, self.columns).unbind(1)
        key = after.attention.transpose(0, 1)
        return self.head(encoded), key, nonlinear, first_values, second_values, first, second, embedding, after.frames


def streaming_ctc(model: Any, chunk: Optional[Sequence[int]] = None) -> StreamingGraph:
    """The torch module of a CTC model's graph, in eval mode. Of a CTC/attention model, only encoder and CTC are in it.

    ``chunk``: encoder frames of a chunk and of its left context, by default the model's ``decode_chunk``.

    Raises UserError when the model cannot stream, or has no ``decode_chunk`` and none is given.
    """
    if model.ctc is None:
        raise UserError("ctc_weight: 0 leaves no CTC output to export; allowed: above 0, or a transducer")
    output = without(model.ctc.ctc_lo, forbidden_tokens(model))
    return _graph(model, nn.Sequential(output, nn.LogSoftmax(dim=-1)), chunk)


def streaming_transducer(model: Any, chunk: Optional[Sequence[int]] = None) -> StreamingGraph:
    """The torch module of a transducer's encoder with its projection to the joiner, as :func:`streaming_ctc`."""
    return _graph(model, model.joint_network.lin_enc, chunk)


def _graph(model: Any, head: nn.Module, chunk: Optional[Sequence[int]]) -> StreamingGraph:
    if not isinstance(model.encoder, StackedEncoder):
        raise UserError(
            f"encoder: {type(model.encoder).__name__} cannot stream; needed: todm_conformer with causal: true, or"
            " todm_mh_ssm with bidirectional: false"
        )
    if model.encoder.interctc_use_conditioning:
        raise UserError("interctc_use_conditioning: true cannot stream; allowed: false")
    check_parts(model)
    given = Chunk(*chunk) if chunk is not None else model.encoder.decode_chunk
    if given is None:
        raise UserError("decode_chunk: the model names none; give --chunk FRAMES LEFT")
    if given.frames < 1 or given.left < 1:
        raise UserError(f"chunk: {given.frames} and {given.left} are not possible; needed: 1 frame or more of each")
    encoder = copy.deepcopy(model.encoder)
    replace(encoder)
    return StreamingGraph(StreamingEncoder(encoder, given), model.normalize, head).eval()


def example_inputs(module: StreamingGraph) -> tuple[Tensor, ...]:
    """Noise and caches for two streams. The first one has no earlier frames."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, module.encoder.window, module.encoder.encoder.input_size, generator=generator)
    *caches, _ = module.initial(2)
    caches = [torch.randn(cache.shape, generator=generator) for cache in caches]
    return (x, *caches, torch.tensor([0, module.encoder.chunk.left]))
