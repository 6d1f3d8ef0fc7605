"""Which graphs a model becomes: names, inputs, outputs and metadata as sherpa-onnx asks for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from espnet_todm.decode.text import forbidden_tokens
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.deploy.onnx.graph import CtcGraph, EncoderGraph
from espnet_todm.deploy.onnx.tokens import runtime_tokens
from espnet_todm.deploy.onnx.transducer import Joiner, LastLabels, ProjectedEncoder
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError

TRACED_FRAMES = (96, 77)  # of the utterances that a graph is recorded on
RUNTIME_FACTOR = 4  # sherpa-onnx's time stamps presume it


@dataclass(frozen=True)
class Graph:
    """One file to be written: its name without suffix, the module, inputs to record it on, and what goes in and out.

    ``inputs`` and ``outputs``: name -> names of the dimensions that vary, by number. ``metadata`` is for the runtime.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, Any]

    @property
    def features(self) -> bool:
        """Whether it takes features and their lengths."""
        return len(self.example) == 2 and self.example[1].dim() == 1 and self.example[0].is_floating_point()


@dataclass(frozen=True)
class Form:
    """A model's graphs, and its tokens as the runtime names and orders them. ``card``: what its card says more."""

    graphs: Sequence[Graph]
    tokens: Sequence[str]
    card: Mapping[str, Any] = field(default_factory=dict)


def runtime_form(model: Any, config: Mapping[str, Any]) -> Form:
    """The form that fits a model. Raises UserError when there is none."""
    if model.blank_id != 0:
        raise UserError(f"token_list: the blank is token {model.blank_id}; runtimes ask for token 0")
    tokens = runtime_tokens(model.token_list, model.blank_id, config["token_type"])
    if model.use_transducer_decoder:
        if not isinstance(model.decoder, StatelessDecoder):
            name = type(model.decoder).__name__
            raise UserError(f"decoder: {name} is recurrent and cannot be exported; needed: todm_stateless")
        return Form(_icefall(model, config), tokens)
    if model.ctc is None:
        raise UserError("ctc_weight: 0 leaves no CTC output to export; allowed: above 0, or a transducer")
    if model.decoder is not None:
        logging.info("decoder: %s is left out: CTC alone is exported", type(model.decoder).__name__)
    return Form([_ctc(model, config)], tokens)


def _ctc(model: Any, config: Mapping[str, Any]) -> Graph:
    """As ``OfflineRecognizer.from_zipformer_ctc`` takes it."""
    encoder = _encoder(model, config)
    return Graph(
        "model",
        CtcGraph(encoder, model.ctc.ctc_lo, forbidden_tokens(model)).eval(),
        _example_features(encoder.features),
        {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}},
        {"log_probs": {0: "N", 1: "T_out"}, "log_probs_len": {0: "N"}},
        {
            "model_type": "zipformer2_ctc",
            "vocab_size": model.vocab_size,
            "subsampling_factor": subsampling_factor(encoder.encoder),
        },
    )


def _icefall(model: Any, config: Mapping[str, Any]) -> list[Graph]:
    """As ``OfflineRecognizer.from_transducer`` takes it."""
    encoder, joint, decoder = _encoder(model, config), model.joint_network, model.decoder
    about = {"vocab_size": model.vocab_size, "context_size": decoder.context_size}
    width = joint.lin_out.in_features
    frame = torch.zeros(2, width)
    return [
        Graph(
            "encoder",
            ProjectedEncoder(encoder, joint.lin_enc).eval(),
            _example_features(encoder.features),
            {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}},
            {"encoder_out": {0: "N", 1: "T_out"}, "encoder_out_lens": {0: "N"}},
            {"model_type": "conformer", **about, "subsampling_factor": subsampling_factor(encoder.encoder)},
        ),
        Graph(
            "decoder",
            LastLabels(decoder, joint.lin_dec).eval(),
            (torch.ones(2, decoder.context_size, dtype=torch.int64),),
            {"y": {0: "N"}},
            {"decoder_out": {0: "N"}},
            about,
        ),
        Graph(
            "joiner",
            Joiner(joint, forbidden_tokens(model)).eval(),
            (frame, frame),
            {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}},
            {"logit": {0: "N"}},
            {"joiner_dim": width},
        ),
    ]


def _example_features(size: int) -> tuple[Tensor, Tensor]:
    """Noise (2, T, F) and lengths (2,) int64."""
    noise = torch.randn(2, TRACED_FRAMES[0], size, generator=torch.Generator().manual_seed(0))
    return noise, torch.tensor(TRACED_FRAMES)


def _encoder(model: Any, config: Mapping[str, Any]) -> EncoderGraph:
    conf = {"input_size": config["input_size"], **(config.get("encoder_conf") or {})}
    return EncoderGraph(model, config["encoder"], conf).eval()


def subsampling_factor(encoder: SupernetEncoder) -> int:
    """How many input frames make one, for the metadata."""
    frames = 2520
    factor = round(frames / encoder.subsampled(frames))
    if factor != RUNTIME_FACTOR:
        logging.warning(
            "input_layer: makes one frame of %d, but sherpa-onnx's time stamps presume %d", factor, RUNTIME_FACTOR
        )
    return factor
