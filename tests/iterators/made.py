"""Cuts for tests: noise as audio, random features of 20 values, and their Shar folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import CutSet, Features, Recording, SupervisionSegment
from lhotse.cut import MonoCut
from lhotse.shar import SharWriter

from tests.tiny_corpus import RATE, noise, words


def audio_cuts(folder: Path, lengths: Sequence[float]) -> CutSet:
    """One cut of noise for each length in seconds, with files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for number, seconds in enumerate(lengths):
        name = f"cut{number:03d}"
        soundfile.write(folder / f"{name}.flac", noise(seconds, number), RATE, subtype="PCM_16")
        recording = Recording.from_file(folder / f"{name}.flac", name)
        said = SupervisionSegment(name, name, 0.0, recording.duration, text=words(number))
        cuts.append(MonoCut(name, 0.0, recording.duration, 0, supervisions=[said], recording=recording))
    return CutSet.from_cuts(cuts)


def feature_cuts(folder: Path, features: dict[str, np.ndarray], texts: dict[str, str]) -> CutSet:
    """One cut for each matrix (T, F), with files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for name, matrix in features.items():
        np.save(folder / f"{name}.npy", matrix)
        seconds = len(matrix) / 100
        stored = Features(
            "fbank", len(matrix), matrix.shape[1], 0.01, 16000, 0.0, seconds, "numpy_files", str(folder), f"{name}.npy",
            recording_id=name, channels=0,
        )  # fmt: skip
        said = SupervisionSegment(name, name, 0.0, seconds, text=texts[name])
        cuts.append(MonoCut(name, 0.0, seconds, 0, supervisions=[said], features=stored))
    return CutSet.from_cuts(cuts)


def joined(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def write_manifest(cuts: CutSet, path: Path) -> Path:
    cuts.to_file(path)
    return path


def write_shar(cuts: CutSet, folder: Path, shard_size: int, **fields: str) -> Path:
    """fields: name -> lhotse's format, by default audio as flac."""
    folder.mkdir(parents=True, exist_ok=True)
    with SharWriter(
        folder, fields=fields or {"recording": "flac"}, shard_size=shard_size, warn_unused_fields=False
    ) as out:
        for cut in cuts:
            out.write(cut)
    return folder


def options(**changes: Any) -> Any:
    """LhotseOptions with small buckets."""
    from espnet_todm.iterators.options import LhotseOptions

    return LhotseOptions(
        **{"train": "cuts.jsonl.gz", "features": "none", "num_buckets": 3, "max_duration": 5.0, **changes}
    )
