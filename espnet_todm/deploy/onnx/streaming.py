"""A streaming CTC model as ``OnlineRecognizer.from_zipformer2_ctc`` of sherpa-onnx takes it: one graph, one chunk per run.

Of the online CTC types this one gets the features that the models were trained on: Kaldi's, of samples in [-1, 1]. NeMo's
type gets other features, WeNet's samples of another scale. It asks for the caches of Zipformer layers, whose sizes its
metadata say. All layers of the model share those of one such layer: what attention remembers lies in the cache for keys,
what the convolutions remember in the two for convolutions, end to end. So a subnet with other widths in each layer needs
no room that it does not fill, and the caches without a use are one number wide.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from espnet_todm.decode.text import forbidden_tokens
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.deploy.onnx.forms import Form, Graph, subsampling_factor
from espnet_todm.deploy.onnx.graph import check_parts, mean_and_scale, without
from espnet_todm.deploy.onnx.quantize import STATIC
from espnet_todm.deploy.onnx.tokens import runtime_tokens
from espnet_todm.deploy.runtime.streaming import tail_seconds
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.encoders.streaming import Caches, StreamingEncoder
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.files import PathLike

EMBED_CACHE = (128, 3, 19)  # of Zipformer's input layer; the runtime makes it of this size always
ROWS = 2  # of the caches for convolutions: the fewest that leave one column to the cache of Zipformer's nonlinear attention
CACHES = ("key", "nonlin_attn", "val1", "val2", "conv1", "conv2", "embed_states", "processed_lens")


class StreamingCtc(nn.Module):
    """A chunk's features and the runtime's caches -> log probabilities, the caches for the next chunk."""

    def __init__(self, encoder: StreamingEncoder, normalize: nn.Module, output: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.output = encoder, output
        self.remembered = encoder.memory * encoder.convolution_width
        self.columns = -(-self.remembered // (2 * ROWS))
        shift, scale = mean_and_scale(normalize)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def initial(self, batch: int) -> tuple[Tensor, ...]:
        """The runtime's caches before the first chunk, all zero: (L, N, A), (1, N, L, 1), (L, N, 1) twice, (N, ROWS,
        columns) twice, (N, 128, 3, 19) in float32, and how many frames there were, at most L, (N,) int64."""
        left = self.encoder.chunk.left
        sizes = [(left, batch, self.encoder.attention_width), (1, batch, left, 1), *2 * [(left, batch, 1)]]
        sizes += [*2 * [(batch, ROWS, self.columns)], (batch, *EMBED_CACHE)]
        return (*map(torch.zeros, sizes), torch.zeros(batch, dtype=torch.int64))

    def metadata(self) -> dict[str, Any]:
        """What makes sherpa-onnx build the caches of :meth:`initial`, and cut speech as the chunks ask for it."""
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
        """x (N, window, F) float32 of Kaldi's features, caches as :meth:`initial` -> log_probs (N, C, V), caches."""
        key, nonlinear, first_values, second_values, first, second, embedding, frames = caches
        together = torch.cat([first.flatten(1), second.flatten(1)], dim=1)[:, : self.remembered]
        filtered = together.view(-1, self.encoder.memory, self.encoder.convolution_width)
        normalised = (x - self.get_buffer("shift")) * self.get_buffer("scale")
        encoded, after = self.encoder(normalised, Caches(key.transpose(0, 1), filtered, frames))
        together = nn.functional.pad(after.convolution.flatten(1), (0, 2 * ROWS * self.columns - self.remembered))
        first, second = together.view(-1, 2, ROWS, self.columns).unbind(1)
        key, log_probs = after.attention.transpose(0, 1), torch.log_softmax(self.output(encoded), dim=-1)
        return log_probs, key, nonlinear, first_values, second_values, first, second, embedding, after.frames


def export_streaming(
    folder: PathLike,
    output: Optional[PathLike] = None,
    options: Optional[ExportOptions] = None,
    gate: Optional[Callable[[Path], Any]] = None,
    chunk: Optional[Sequence[int]] = None,
) -> Path:
    """Write the model of an extracted subnet's folder, by default to its subfolder ``streaming-onnx``: ``model.onnx`` with
    its other precisions, ``tokens.txt``, ``card.json``. Arguments and errors as those of :func:`streaming_form` and
    :func:`espnet_todm.deploy.onnx.export.export`."""
    options = options or ExportOptions()
    if options.int8 == STATIC:
        raise UserError(
            f"int8: {STATIC} is not possible with streaming-onnx, whose caches no features show; allowed: dynamic"
        )
    return export(folder, output, options, gate, partial(streaming_form, chunk=chunk), STREAMING_FOLDER)


def streaming_form(model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]] = None) -> Form:
    """The one graph of a streaming CTC model, and its tokens.

    ``chunk``: frames of a chunk and of its left context, by default as the model's ``decode_chunk`` says.

    Raises UserError when the model is none, cannot stream, or names no chunk.
    """
    module = streaming_ctc(model, chunk)
    inputs, outputs = {"x": {0: "N"}}, {"log_probs": {0: "N"}}
    for name in CACHES:
        axis = 0 if name.startswith(("conv", "embed", "processed")) else 1
        inputs[name], outputs[f"new_{name}"] = {axis: "N"}, {axis: "N"}
    tail = tail_seconds(module.encoder.window)
    about = {
        **module.metadata(),
        "vocab_size": model.vocab_size,
        "subsampling_factor": subsampling_factor(module.encoder.encoder),
        "todm_chunk_frames": module.encoder.chunk.frames,
        "todm_left_frames": module.encoder.chunk.left,
        "todm_tail_seconds": tail,
    }
    graph = Graph("model", module, _example_inputs(module), inputs, outputs, about)
    logging.info(
        "streaming-onnx: give sherpa-onnx %g s of silence after each utterance, before input_finished: what makes no whole"
        " chunk it does not hear",
        tail,
    )
    tokens = runtime_tokens(model.token_list, model.blank_id, config["token_type"])
    seconds = module.encoder.shift / FRAMES_PER_SECOND
    told = {**asdict(module.encoder.chunk), "chunk_seconds": seconds, "tail_seconds": tail}
    return Form([graph], tokens, {"streaming": told})


def streaming_ctc(model: Any, chunk: Optional[Sequence[int]] = None) -> StreamingCtc:
    """What goes into the graph, as a torch module. Raises UserError as :func:`streaming_form`."""
    if model.use_transducer_decoder or model.ctc is None:
        raise UserError("format: streaming-onnx is for CTC models; needed: ctc_weight above 0 and no transducer")
    if model.blank_id != 0:
        raise UserError(f"token_list: the blank is token {model.blank_id}; runtimes ask for token 0")
    if not isinstance(model.encoder, StackedEncoder):
        raise UserError(
            f"encoder: {type(model.encoder).__name__} cannot stream; needed: todm_conformer, trained with causal: true"
        )
    if model.encoder.interctc_use_conditioning:
        raise UserError("interctc_use_conditioning: true cannot stream; allowed: false")
    check_parts(model)
    given = Chunk(*chunk) if chunk is not None else model.encoder.decode_chunk
    if given is None:
        raise UserError("decode_chunk: the model names none; give --chunk FRAMES LEFT")
    if given.frames < 1 or given.left < 1:
        raise UserError(f"chunk: {given.frames} and {given.left} are not possible; needed: 1 frame or more of each")
    output = without(model.ctc.ctc_lo, forbidden_tokens(model))
    return StreamingCtc(StreamingEncoder(model.encoder, given), model.normalize, output).eval()


def _example_inputs(module: StreamingCtc) -> tuple[Tensor, ...]:
    """Noise for two streams, of which one has seen no frame yet."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, module.encoder.window, module.encoder.encoder.input_size, generator=generator)
    *caches, _ = module.initial(2)
    caches = [torch.randn(cache.shape, generator=generator) for cache in caches]
    return (x, *caches, torch.tensor([0, module.encoder.chunk.left]))
