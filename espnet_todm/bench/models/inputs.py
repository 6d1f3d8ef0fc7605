"""The speech on which models are timed: samples for runtimes that compute features, Kaldi's fbank for the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_todm.decode.features import read_features, seconds_of
from espnet_todm.deploy.runtime.fbank import fbank
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike


@dataclass(frozen=True)
class Utterances:
    """For each utterance: features (T, 80) float32, audio (S,) float32 in [-1, 1] (may be empty), length in seconds."""

    features: list[np.ndarray]
    audio: list[np.ndarray]
    seconds: list[float]


def read_utterances(scp: PathLike, limit: int, audio: bool) -> Utterances:
    """Read the first ``limit`` utterances of a wav.scp (16 kHz), or of a feats.scp if not ``audio``. Raises UserError."""
    check_number("utterances", limit, at_least=1, whole=True)
    values = [value for _, value in read_features(scp, limit, SAMPLING_RATE, 1)]
    seconds = [seconds_of(value) for value in values]
    if values[0].dim() == 2:
        if audio:
            raise UserError(
                f"{scp}: holds features, but sherpa-onnx takes audio; give a wav.scp, or --runtimes without it"
            )
        return Utterances([value.numpy() for value in values], [], seconds)
    samples = [value.numpy() for value in values]
    return Utterances([fbank(value) for value in samples], samples, seconds)


def write_inputs(folder: Path, utterances: Utterances) -> dict[str, Path]:
    """Write one file for each kind of input with all utterances, for the workers. Returns kind -> path."""
    paths = {}
    for kind in ("features", "audio"):
        paths[kind] = folder / f"{kind}.npz"
        np.savez(paths[kind], *getattr(utterances, kind))
    return paths
