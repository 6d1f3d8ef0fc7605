"""One small file with the features and transcripts of a corpus. Reading it takes numpy and the standard library only.

The log energies are rounded to multiples of ``step`` nats. Each is predicted from its neighbours in the frame before and
below it in its own frame, in whole numbers, so that every machine decodes the same. The differences from the predictions are
stored by band, compressed with lzma.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, atomic_path

STEP = 0.5
# Bands compressed in one piece. Pieces are decompressed in parallel.
_PIECE = 5
# Weights of a value's neighbours, in 1/32: a least squares fit on LibriSpeech, rounded. In the frame before: the same band,
# one below, one above; in the same frame: one band below, two below.
_BEFORE, _BEFORE_BELOW, _BEFORE_ABOVE, _BELOW, _TWO_BELOW = 16, -11, 5, 25, -3
# Literals only: the differences have no repetitions worth a search.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 16, "nice_len": 273, "depth": 1}]


@dataclass(frozen=True)
class Utterance:
    """features: (T, F) float32, log mel energies."""

    name: str
    text: str
    features: np.ndarray


def write_corpus(path: PathLike, corpus: Mapping[str, Sequence[Utterance]], step: float = STEP) -> None:
    """Write splits of utterances. All have the same number of bands. Raises UserError if there is none."""
    if not any(corpus.values()):
        raise UserError(f"{path}: no utterances to pack")
    header: dict[str, Any] = {"step": step, "splits": {}}
    pieces: dict[str, Any] = {}
    for split, utterances in corpus.items():
        ordered = sorted(utterances, key=lambda u: (-len(u.features), u.name))
        values = [np.rint(u.features / step).astype(np.int16) for u in ordered]
        header["splits"][split] = [[u.name, u.text, len(u.features)] for u in ordered]
        differences = np.concatenate([_differences(v) for v in values])  # (frames, F)
        for first in range(0, differences.shape[1], _PIECE):
            piece = np.ascontiguousarray(_to_bytes(differences[:, first : first + _PIECE]).T)
            packed = lzma.compress(piece.tobytes(), format=lzma.FORMAT_XZ, filters=_FILTERS)
            pieces[f"{split}/{first}"] = np.frombuffer(packed, np.uint8)
        header["bands"] = differences.shape[1]
    text = lzma.compress(json.dumps(header).encode())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.frombuffer(text, np.uint8), **pieces)


def read_corpus(path: PathLike, splits: Iterable[str] = ()) -> dict[str, list[Utterance]]:
    """The utterances of ``splits`` (default all), longest first. Raises UserError if the file or a split is missing."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; benchmarks/gpu_pack.sh makes it")
    with np.load(path) as stored, ThreadPoolExecutor() as pool:
        header = json.loads(lzma.decompress(stored["header"].tobytes()))
        corpus = {}
        for split in splits or header["splits"]:
            if split not in header["splits"]:
                raise UserError(f"{path}: no split {split!r}; it has {', '.join(header['splits'])}")
            rows = header["splits"][split]
            packed = [stored[f"{split}/{first}"].tobytes() for first in range(0, header["bands"], _PIECE)]
            raw = b"".join(pool.map(lzma.decompress, packed))
            differences = _from_bytes(np.frombuffer(raw, np.uint8)).reshape(header["bands"], -1)
            values = _restored(differences, [length for _, _, length in rows])
            corpus[split] = [
                Utterance(name, text, v.astype(np.float32) * np.float32(header["step"]))
                for (name, text, _), v in zip(rows, values)
            ]
    return corpus


def _from_frame_before(before: np.ndarray) -> np.ndarray:
    """The frame before's share in the prediction of each value, in 1/32. ``before`` (..., F + 3) has two zeros below its
    bands and one above; the result is (..., F)."""
    return _BEFORE * before[..., 2:-1] + _BEFORE_BELOW * before[..., 1:-2] + _BEFORE_ABOVE * before[..., 3:] + 16


def _differences(values: np.ndarray) -> np.ndarray:
    """Whole values (T, F) -> differences from their predictions, (T, F)."""
    padded = np.pad(values, ((1, 0), (2, 1)))
    same = _BELOW * padded[1:, 1:-2] + _TWO_BELOW * padded[1:, :-3]
    return values - ((_from_frame_before(padded[:-1]) + same) >> 5)


def _restored(differences: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Inverse of _differences for utterances (longest first) joined to (F, frames): all utterances frame by frame."""
    bands, longest, count = len(differences), lengths[0], len(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    values = np.zeros((longest + 1, bands + 3, count), np.int16)
    going = np.searchsorted(-np.asarray(lengths), -np.arange(longest), side="left")  # longer than t
    for t, n in enumerate(going):
        now, column = values[t + 1], starts[:n] + t
        shares, new = _from_frame_before(values[t].T).T, differences[:, column]
        for band in range(bands):
            same = _BELOW * now[band + 1, :n] + _TWO_BELOW * now[band, :n]
            now[band + 2, :n] = new[band] + ((shares[band, :n] + same) >> 5)
    return [values[1 : length + 1, 2:-1, u] for u, length in enumerate(lengths)]


def _to_bytes(differences: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ... Raises UserError beyond a byte, where features are no log energies."""
    folded = np.where(differences >= 0, 2 * differences, -2 * differences - 1)
    if folded.size and folded.max() > 255:
        raise UserError("features jump by more than 127 steps; log energies do not")
    return folded.astype(np.uint8)


def _from_bytes(folded: np.ndarray) -> np.ndarray:
    value = folded.astype(np.int16)
    return (value >> 1) ^ -(value & 1)
