"""A CTC or CTC/attention supernet of a few thousand parameters, and batches for it."""

from __future__ import annotations

from typing import Any, Optional

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.models.batch import Batch
from espnet_todm.models.subnet_trainer import SubnetTrainer, TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from tests.conftest import conformer

TOKENS = ["<blank>", "<unk>", "▁", *"abcdefg", "<sos/eos>"]
SIZES = {"middle": {"depth": 0.67, "ffn": 0.5}, "small": {"depth": 0.34, "ffn": 0.5, "heads": 0.5}}
PARTS = dict.fromkeys(("frontend", "specaug", "normalize", "preencoder", "postencoder", "decoder", "joint_network"))


def tiny_model(
    ctc_weight: float = 1.0,
    model: Optional[dict[str, Any]] = None,
    supernet: Optional[SupernetEncoder] = None,
    **encoder: Any,
) -> TodmModel:
    """A 3-block supernet, by default a Conformer with the sizes middle and small; ``ctc_weight`` below 1 adds a transformer
    decoder."""
    if supernet is None:
        supernet = conformer(**{"sizes": SIZES, "conv_norm": "layer_norm", **encoder})
    parts = dict(PARTS)
    if ctc_weight < 1:
        quiet = dict.fromkeys(("dropout_rate", "positional_dropout_rate"), 0.0)
        parts["decoder"] = TransformerDecoder(
            len(TOKENS), 16, attention_heads=2, linear_units=16, num_blocks=1, **quiet
        )
    options = {"vocab_size": len(TOKENS), "token_list": TOKENS, "ctc_weight": ctc_weight, "report_cer": True}
    ctc = CTC(len(TOKENS), 16, dropout_rate=0.0)  # ESPnet drops it itself where ctc_weight is 0
    return TodmModel(encoder=supernet, ctc=ctc, **{**options, **parts, **(model or {})})


def trained_by(trainer: type[SubnetTrainer] = KDTrainer, ctc_weight: float = 1.0, **conf: Any) -> TodmModel:
    """A tiny model in training mode with its subnet trainer."""
    model = tiny_model(ctc_weight).train()
    model.subnet_trainer = trainer(model, **conf)
    return model


def batch(utterances: int = 2, frames: int = 60, tokens: int = 4, seed: int = 0) -> Batch:
    """Random speech; the last utterance is shorter in speech and text."""
    generator = torch.Generator().manual_seed(seed)
    speech = torch.randn(utterances, frames, 20, generator=generator)
    text = torch.randint(2, len(TOKENS) - 1, (utterances, tokens), generator=generator)
    lengths, text_lengths = torch.full((utterances,), frames), torch.full((utterances,), tokens)
    lengths[-1], text_lengths[-1] = frames - 10, tokens - 1
    text[-1, -1] = -1
    return Batch(speech, lengths, text, text_lengths)


def run(model: TodmModel, of: Batch, step: int = 0, **context: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss (scalar) and statistics of a training step, or of the validation behind it, as ESPnet calls the model."""
    if model.training and model.subnet_trainer is not None:
        model.subnet_trainer.prepare(model, step, TrainingSetup())
    loss, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=step, **context)
    return loss.sum(), {key: value.squeeze() for key, value in stats.items()}


def gradients(model: torch.nn.Module) -> dict[str, Optional[torch.Tensor]]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
