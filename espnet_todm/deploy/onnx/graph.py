"""Torch modules that are traced to ONNX graphs: an encoder, and a CTC model, on unnormalised features.

``torch.onnx`` traces one run, so everything that depends on an utterance's length must be an operation on tensors. Encoders
are traced with two replacements. Position encodings are computed for the length of the input, not sliced from a table.
State space layers run without Fourier transforms (:mod:`espnet_todm.deploy.onnx.state_space`).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Union, cast

import torch
from espnet.nets.pytorch_backend.transformer.embedding import (
    PositionalEncoding,
    RelPositionalEncoding,
    ScaledPositionalEncoding,
)
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor, nn

from espnet_todm.decode.text import NEVER
from espnet_todm.deploy.onnx.state_space import replace
from espnet_todm.deploy.stock import STOCK
from espnet_todm.encoders.chunks import length_mask
from espnet_todm.encoders.interctc import Between
from espnet_todm.encoders.known import encoders
from espnet_todm.encoders.positions import LegacyPositions
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRONTEND

TRACED_FRAMES = (96, 77)  # lengths of the two utterances for tracing
RUNTIME_FACTOR = 4  # subsampling factor that sherpa-onnx's time stamps assume


class EncoderGraph(nn.Module):
    """Global mean and variance normalisation, and the encoder: features from the runtime -> encoded frames.

    Args:
        model: in eval mode; it is not changed.
        encoder, conf: name and options of the encoder, including ``input_size``.

    Raises:
        UserError: a part cannot be exported to ONNX.
    """

    def __init__(self, model: ESPnetASRModel, encoder: str, conf: Mapping[str, Any]) -> None:
        super().__init__()
        check_parts(model)
        self.encoder = exportable(model.encoder, encoder, conf)
        conditioned = self.encoder.interctc_use_conditioning
        self.fed_back = copy.deepcopy(model.ctc.ctc_lo) if conditioned else None
        self.features = self.encoder.input_size
        self.shortest = self.encoder.shortest()
        shift, scale = mean_and_scale(model.normalize)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, F) float32, lengths (N,) int64 -> encoded (N, T', D), lengths (N,) int64."""
        normalised = (x - self.get_buffer("shift")) * self.get_buffer("scale")
        normalised = normalised.masked_fill(~length_mask(lengths, x.size(1)).transpose(1, 2), 0.0)
        # An input that is too short for one frame is padded to one frame, with length 0.
        frames = torch._shape_as_tensor(x)[1].clamp(min=self.shortest)
        normalised = nn.functional.pad(normalised, (0, 0, 0, self.shortest))[:, :frames]
        subsampled = self.encoder.subsample(normalised, lengths)
        return self.encoder.blocks(subsampled, between=Between(self._posteriors)), subsampled.lengths

    def _posteriors(self, output: Tensor) -> Tensor:
        """An intermediate output (N, T', D) -> posteriors (N, T', V), as in training."""
        return torch.softmax(cast(nn.Linear, self.fed_back)(output), dim=-1)


class CtcGraph(nn.Module):
    """A whole CTC model, from features to log probabilities. ``forbidden``: tokens that are never output."""

    def __init__(self, encoder: EncoderGraph, output: nn.Linear, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = without(output, forbidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, F), lengths (N,) -> log_probs (N, T', V), lengths (N,) int64."""
        encoded, lengths = self.encoder(x, lengths)
        return torch.log_softmax(self.output(encoded), dim=-1), lengths


class ComputedPositions(nn.Module):
    """ESPnet's (Rel)PositionalEncoding for any length. It computes the sines, so the file needs no table."""

    def __init__(self, table: Union[PositionalEncoding, RelPositionalEncoding]) -> None:
        super().__init__()
        self.relative = isinstance(table, RelPositionalEncoding)
        self.longest = table.longest if isinstance(table, LegacyPositions) else None
        scaled = isinstance(table, ScaledPositionalEncoding)
        self.root = 1.0 if scaled else float(table.xscale)
        self.weight = float(table.alpha.detach()) if scaled else 1.0
        size = int(table.d_model)
        steps = torch.arange(0, size, 2, dtype=torch.float32) * -(math.log(10000.0) / size)
        self.register_buffer("rates", torch.exp(steps))

    def forward(self, x: Tensor) -> Union[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, D) -> x with absolute positions added, or a pair of x and relative positions: (1, 2T-1, D) for the
        distances T-1 .. -(T-1), or (1, T, D) with ``rel_pos_type: legacy``."""
        frames = x.size(1)
        if self.longest is not None:
            last = torch._shape_as_tensor(x)[1].clamp(min=self.longest) - 1
            return x * self.root, self._waves(last - torch.arange(frames, device=x.device))
        if self.relative:
            places = torch.arange(2 * frames - 1, device=x.device)
            return x * self.root, self._waves(frames - 1 - places)
        return x * self.root + self.weight * self._waves(torch.arange(frames, device=x.device))

    def _waves(self, places: Tensor) -> Tensor:
        """Positions (P,) -> (1, P, D): sine and cosine of each rate, interleaved."""
        angles = places.to(torch.float32).unsqueeze(1) * self.get_buffer("rates")
        return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1).unsqueeze(0)


def exportable(encoder: nn.Module, name: str, conf: Mapping[str, Any]) -> SupernetEncoder:
    """A copy of an encoder with ONNX operations only. Raises UserError unless it is a supernet encoder or a stock one."""
    if isinstance(encoder, SupernetEncoder):
        ours = copy.deepcopy(encoder)
    elif name in STOCK:
        ours = _as_ours(encoder, name, conf)
    else:
        allowed = ", ".join(sorted({*encoders(), *STOCK}))
        raise UserError(f"encoder: {name!r} cannot be exported; allowed: {allowed}")
    for module in list(ours.modules()):
        for child, part in list(module.named_children()):
            if isinstance(part, (PositionalEncoding, RelPositionalEncoding)):
                setattr(module, child, ComputedPositions(part))
    replace(ours)
    return ours.eval()


def encoder_graph(model: Any, config: Mapping[str, Any]) -> EncoderGraph:
    """The :class:`EncoderGraph` of a model with this config. Raises UserError as that class."""
    conf = {"input_size": config["input_size"], **(config.get("encoder_conf") or {})}
    return EncoderGraph(model, config["encoder"], conf).eval()


def example_features(size: int) -> tuple[Tensor, Tensor]:
    """Noise (2, T, F) float32 and lengths (2,) int64 for tracing."""
    noise = torch.randn(2, TRACED_FRAMES[0], size, generator=torch.Generator().manual_seed(0))
    return noise, torch.tensor(TRACED_FRAMES)


def subsampling_factor(encoder: SupernetEncoder) -> int:
    """Number of input frames per encoder frame, for the metadata."""
    frames = 2520
    factor = round(frames / encoder.subsampled(frames))
    if factor != RUNTIME_FACTOR:
        logging.warning(
            "input_layer: makes one frame of %d, but sherpa-onnx's time stamps presume %d", factor, RUNTIME_FACTOR
        )
    return factor


def check_parts(model: ESPnetASRModel) -> None:
    """Raises UserError when the model has a part before or after the encoder that cannot be exported."""
    if model.frontend is not None:
        name = type(model.frontend).__name__
        raise UserError(
            f"frontend: {name} cannot be exported: on-device runtimes compute Kaldi's filterbank; train on it"
            f" (frontend: {FRONTEND} on audio, or features of feats_type fbank)"
        )
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise UserError(f"{part}: {type(getattr(model, part)).__name__} cannot be exported; allowed: null")
    if not isinstance(model.normalize, GlobalMVN):
        name = "null" if model.normalize is None else type(model.normalize).__name__
        raise UserError(f"normalize: {name} cannot be exported; needed: global_mvn, whose statistics go into the graph")


def mean_and_scale(normalize: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean that ESPnet's GlobalMVN subtracts from features, and scale that it multiplies by, (F,) float32 each."""
    mean, deviation = normalize.get_buffer("mean").float(), normalize.get_buffer("std").float()
    shift = mean if normalize.norm_means else torch.zeros_like(mean)
    scale = 1 / deviation if normalize.norm_vars else torch.ones_like(deviation)
    return shift.clone(), scale.clone()


def without(layer: nn.Linear, forbidden: Sequence[int]) -> nn.Linear:
    """A copy of an output layer, D -> V, whose weights set the logits of forbidden tokens to NEVER."""
    masked = copy.deepcopy(layer)
    if masked.bias is None:
        masked.bias = nn.Parameter(torch.zeros(masked.out_features))
    with torch.no_grad():
        masked.weight[list(forbidden)] = 0.0
        masked.bias[list(forbidden)] = NEVER
    return masked


def _as_ours(encoder: nn.Module, name: str, conf: Mapping[str, Any]) -> SupernetEncoder:
    """ESPnet's encoder as a supernet encoder. Raises UserError when its options are not possible in a supernet."""
    try:
        ours = STOCK[name](**conf)
    except UserError as error:
        raise UserError(f"encoder: {name!r} with these options cannot be exported: {error}") from None
    ours.condition_like(encoder.state_dict())
    ours.load_state_dict(encoder.state_dict())
    return ours
