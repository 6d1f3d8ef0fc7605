"""Kaldi's filterbank features of one utterance, as stage 3 and as sherpa-onnx compute them: the input of exported models."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import MEL_BINS, SAMPLING_RATE, WINDOW
from espnet_todm.util.optional import needed

if TYPE_CHECKING:
    from lhotse import Fbank


SILENCE = math.log(np.finfo(np.float32).eps)  # the lowest log energy; digital silence has it in every bin


def fbank(samples: np.ndarray, mel_bins: int = MEL_BINS) -> np.ndarray:
    """samples (N,) float in [-1, 1] at 16 kHz -> log energies (T, mel_bins), float32, in frames of 10 ms.

    lhotse's Fbank with default options: no dither, snip_edges false. Samples shorter than one window give (0, mel_bins).
    Raises UserError for samples of another shape or dtype.
    """
    check_samples(samples)
    if len(samples) < WINDOW:
        return np.zeros((0, mel_bins), dtype=np.float32)
    return np.asarray(_extractor(mel_bins).extract(samples, SAMPLING_RATE), dtype=np.float32)


def device_fbank(samples: np.ndarray, mel_bins: int = MEL_BINS) -> np.ndarray:
    """As :func:`fbank`, but computed as in sherpa-onnx: with its library, kaldi-native-fbank, and its options.

    Raises UserError for samples of another shape or dtype, and when the library is not installed.
    """
    check_samples(samples)
    native = needed("kaldi_native_fbank")
    options = native.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.snip_edges = SAMPLING_RATE, 0.0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = mel_bins, -400.0
    computed = native.OnlineFbank(options)
    computed.accept_waveform(SAMPLING_RATE, samples)
    computed.input_finished()
    frames = [computed.get_frame(number) for number in range(computed.num_frames_ready)]
    return np.array(frames, dtype=np.float32).reshape(-1, mel_bins)


def check_samples(samples: np.ndarray) -> None:
    """Raises UserError for several channels, and for integers, whose scale is too large."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(
            f"speech: samples of shape {list(samples.shape)} and type {samples.dtype}; needed: one channel of floats in"
            f" [-1, 1], {SAMPLING_RATE} a second"
        )


@cache
def _extractor(mel_bins: int) -> Fbank:
    from lhotse import Fbank, FbankConfig

    return Fbank(FbankConfig(sampling_rate=SAMPLING_RATE, num_filters=mel_bins))
