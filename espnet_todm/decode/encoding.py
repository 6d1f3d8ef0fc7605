"""From model input to encoded frames, of ESPnet's models and of ours alike."""

from __future__ import annotations

from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor


def encode(model: ESPnetASRModel, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """speech (B, T, F) or (B, samples), lengths (B,) -> the encoder's output (B, T', D), lengths (B,).

    What models with an intermediate CTC give beside it, the outputs between blocks, is left out. Raises ESPnet's
    TooShortUttError where an utterance is too short for one frame.
    """
    encoded, frames = model.encode(speech, lengths)
    return (encoded[0] if isinstance(encoded, tuple) else encoded), frames
