"""Kaldi's filterbank features of one utterance, as stage 3 computes them: what exported models are given."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from espnet_todm.acoustics import MEL_BINS, SAMPLING_RATE

if TYPE_CHECKING:
    from lhotse import Fbank


def fbank(samples: np.ndarray, mel_bins: int = MEL_BINS) -> np.ndarray:
    """samples (N,) float32 in [-1, 1] at 16 kHz -> log energies (T, mel_bins), float32, in frames of 10 ms.

    lhotse's Fbank with its default options: no dither, snip_edges false. Nothing (0, mel_bins) below one window.
    """
    if len(samples) < SAMPLING_RATE // 40:
        return np.zeros((0, mel_bins), dtype=np.float32)
    return np.asarray(_extractor(mel_bins).extract(samples, SAMPLING_RATE), dtype=np.float32)


@cache
def _extractor(mel_bins: int) -> Fbank:
    from lhotse import Fbank, FbankConfig

    return Fbank(FbankConfig(sampling_rate=SAMPLING_RATE, num_filters=mel_bins))
