"""``frontend: todm_fbank``: Kaldi's filterbank from samples, the features that sherpa-onnx computes on a device.

A model that trains on audio with it (``asr.sh``, ``feats_type raw``) is exported like one that trains on such features.
Source: Kaldi's compute-fbank-feats with 80 bins, ``--snip-edges=false`` and no dither, as lhotse's Fbank has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAME_SAMPLES, FRONTEND, MEL_BINS, SAMPLING_RATE, WINDOW
from espnet_todm.util.checks import check_number
from espnet_todm.util.host import on_both, values
from espnet_todm.util.units import parse_hertz

FFT = 512
PREEMPHASIS = 0.97
LOWEST, HIGHEST = 20.0, -400.0  # Hz; the latter below half of the sampling rate
BEFORE = (WINDOW - FRAME_SAMPLES) // 2  # samples of the first frame before the utterance


class KaldiFbank(AbsFrontend):
    """Samples (B, N), floats in [-1, 1] at 16 kHz, and lengths (B,) -> log energies (B, T, F), lengths in frames of 10 ms.

    An utterance's frames do not depend on the rest of the batch. Those behind its end are 0. An utterance that is shorter
    than one window (25 ms) has none.

    Args:
        fs: sampling rate in Hz; only 16000, or "16k".
        n_mels: number of bins F.
        n_fft, win_length, hop_length: as in many configurations of ESPnet's front end; only 512, 400 and 160, or None.

    Raises:
        UserError: another sampling rate, window or shift, or fewer than 4 bins; in a pass: several channels.
    """

    def __init__(
        self,
        fs: Union[int, str] = SAMPLING_RATE,
        n_mels: int = MEL_BINS,
        n_fft: Optional[int] = None,
        win_length: Optional[int] = None,
        hop_length: Optional[int] = None,
    ) -> None:
        from lhotse.features.kaldi.layers import create_frame_window, get_mel_banks

        super().__init__()
        if parse_hertz("frontend_conf.fs", fs) != SAMPLING_RATE:
            raise UserError(f"frontend_conf.fs: {fs}; allowed: {SAMPLING_RATE}, which the runtimes on devices need")
        fixed = ("n_fft", n_fft, FFT), ("win_length", win_length, WINDOW), ("hop_length", hop_length, FRAME_SAMPLES)
        for key, value, only in fixed:
            if value not in (None, only):
                raise UserError(f"frontend_conf.{key}: {value}; allowed: {only}, as on devices; leave it out")
        check_number("frontend_conf.n_mels", n_mels, at_least=4, whole=True)
        self.n_mels = n_mels
        filters, _ = get_mel_banks(n_mels, FFT, float(SAMPLING_RATE), LOWEST, HIGHEST)
        # Not in checkpoints: they are constants.
        self.register_buffer("window", create_frame_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)  # (FFT / 2, F)

    def output_size(self) -> int:
        return self.n_mels

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:  # ESPnet's names
        if input.dim() != 2:
            raise UserError(f"frontend: {FRONTEND}: audio of {input.size(-1)} channels; needed: one channel")
        frames = on_both(number_of_frames, input_lengths)
        windows = _windows(input, input_lengths, max(1, *values(frames)))
        windows = windows - windows.mean(dim=-1, keepdim=True)
        earlier = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((windows - PREEMPHASIS * earlier) * self.get_buffer("window"), n=FFT)
        power = spectrum.abs().square()[..., :-1]  # no filter reaches the last bin
        energies = (power @ self.get_buffer("filters")).clamp(min=torch.finfo(torch.float32).eps).log()
        behind = torch.arange(windows.size(1), device=input.device) >= frames.to(input.device).unsqueeze(1)
        return energies.masked_fill(behind.unsqueeze(-1), 0.0), frames


def number_of_frames(samples: Tensor) -> Tensor:
    """Numbers of samples -> numbers of frames, as int64."""
    return torch.where(samples < WINDOW, 0, (samples + FRAME_SAMPLES // 2) // FRAME_SAMPLES)


def on_features(model: ESPnetASRModel, config: Mapping[str, Any]) -> tuple[ESPnetASRModel, dict[str, Any]]:
    """A model that computes Kaldi's features becomes one that is given them, changed in place, and its config; others stay.

    This is what runs on a device, which computes the features itself.
    """
    if not isinstance(model.frontend, KaldiFbank):
        return model, dict(config)
    size, model.frontend = model.frontend.output_size(), None
    return model, {**config, "frontend": None, "frontend_conf": {}, "input_size": size}


def _windows(samples: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """(B, N) -> (B, T, WINDOW), a view. Beyond its first and last sample, an utterance goes on mirrored."""
    ends = lengths.to(samples.device).unsqueeze(1)
    place = torch.arange((frames - 1) * FRAME_SAMPLES + WINDOW, device=samples.device) - BEFORE
    place = torch.where(place < 0, -1 - place, place)
    place = torch.where(place >= ends, 2 * ends - 1 - place, place)
    return samples.gather(1, place.clamp(0, samples.size(1) - 1)).unfold(1, WINDOW, FRAME_SAMPLES)
