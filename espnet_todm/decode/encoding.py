"""Encoder output for model input, for ESPnet's models and ours."""

from __future__ import annotations

from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor


def encode(model: ESPnetASRModel, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """speech (B, T, F) or (B, samples), lengths (B,) -> the encoder's output (B, T', D), lengths (B,).

    Additional outputs of models with intermediate CTC (the outputs between blocks) are dropped. Raises ESPnet's
    TooShortUttError if an utterance is too short for one frame.
    """
    encoded, frames = model.encode(speech, lengths)
    return (encoded[0] if isinstance(encoded, tuple) else encoded), frames
