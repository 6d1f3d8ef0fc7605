"""Words that models write where nobody speaks, per minute of silence, noise, hum, tones and knocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.data.nonspeech import KINDS, sound_of
from espnet_todm.deploy.folder import extracted_folders
from espnet_todm.deploy.onnx.folder import FOLDER
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, TORCH, Runtime
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike

FORMAT = "espnet_todm.nonspeech/1"
SECONDS = 12.0  # of one sound
ALL = "all"


def sounds(minutes: float, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Kind -> sounds of SECONDS, as many of each kind; at least one. Together about ``minutes``."""
    check_number("minutes", minutes, above=0)
    rng = np.random.default_rng(seed)
    each = max(1, round(minutes * 60 / SECONDS / len(KINDS)))
    return {kind: [sound_of(kind, int(SECONDS * SAMPLING_RATE), rng) for _ in range(each)] for kind in KINDS}


def words_per_minute(runtime: Runtime, made: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """Words that a model writes in a minute of each kind of sound, and of all of them."""
    words = {kind: sum(len(runtime.transcribe(sound).split()) for sound in made[kind]) for kind in made}
    minutes = {kind: sum(map(len, made[kind])) / SAMPLING_RATE / 60 for kind in made}
    rates = {kind: words[kind] / minutes[kind] for kind in made}
    return {ALL: sum(words.values()) / sum(minutes.values()), **rates}


def measure_nonspeech(
    experiment: PathLike,
    minutes: float,
    sizes: Sequence[str] = (),
    precisions: Sequence[str] = (),
    graphs: str = FOLDER,
) -> dict[str, Any]:
    """What each size of an experiment writes: in PyTorch, and as an ONNX file of each precision.

    graphs: the folder of the ONNX files in that of a size. Raises UserError for a size or file that is not there.
    """
    folders = extracted_folders(experiment, sizes)
    made = sounds(minutes)
    rows = []
    for folder in folders:
        for runtime, precision in [(TORCH, "fp32"), *((ONNXRUNTIME, precision) for precision in precisions)]:
            place: Path = folder if runtime == TORCH else folder / graphs
            rates = words_per_minute(open_runtime(runtime, place, precision), made)
            rows.append({"size": folder.name, "runtime": runtime, "precision": precision, **rates})
    return {"format": FORMAT, "seconds": SECONDS * sum(map(len, made.values())), "results": rows}
