"""The end of stage 4 with ``--feats_type shar``: the features that passed, as a Shar folder to train from with lhotse.

Its utterances are in random order, so that each shard has all kinds of them.
"""

from __future__ import annotations

import io
import json
import logging
import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import kaldiio
import numpy as np
from lhotse import Features, SupervisionSegment
from lhotse.cut import MonoCut
from lhotse.shar import SharWriter

from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.data.sorted_tables import Lookup, sorted_table
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, SAMPLING_RATE
from espnet_todm.util.checks import check_number
from espnet_todm.util.evenly import groups
from espnet_todm.util.files import PathLike, to_json, write_text
from espnet_todm.util.launch import launch
from espnet_todm.util.stage_marker import atomic_stage, fingerprint

SHAR = "shar"
LARGEST, SHARDS = 1000, 64  # utterances of a shard; small sets are cut into this many shards


@dataclass(frozen=True)
class ShardOfFeatures:
    """One task: the utterances in ``rows`` become shard ``number`` of ``folder``.

    ``rows`` has a line of JSON each: name, the archive's place, words, speaker.
    """

    folder: Path
    number: int
    rows: Path


def make_shar(
    features: PathLike,
    output: PathLike,
    shard_size: Optional[int] = None,
    seed: int = 0,
    **how: Any,
) -> Path:
    """Write the Shar folder ``output``/shar of a set of stage 4, ``features`` (``<features>/<split>``), and return it.

    shard_size: utterances of a shard; None: LARGEST, or fewer, for SHARDS shards of a small set.
    seed: of the order. ``how`` goes to ``launch`` (jobs, launcher, logs).
    Raises UserError where stage 4 has not been completed or has no archives of features.
    """
    source, target = Path(features), Path(output)
    options = {"stage": "shar", "shard_size": shard_size, "seed": seed, "input": fingerprint(source)}
    with atomic_stage(target, options) as folder:
        if folder is None:
            return target / SHAR
        rows = _rows(source, seed, folder)
        size = max(1, min(LARGEST, len(rows) // SHARDS)) if shard_size is None else shard_size
        check_number("shard_size", size, at_least=1, whole=True)
        (folder / SHAR).mkdir()  # of its own: lhotse takes all files of a Shar folder for shards
        shards = []
        for number, group in enumerate(groups(rows, size)):
            shards.append(ShardOfFeatures(folder / SHAR, number, folder / f"rows.{number}.jsonl"))
            write_text(shards[-1].rows, "".join(to_json(row[1:]) + "\n" for row in group))
        launch(write_shard, shards, **{"name": "shar", **how})
    logging.info("%s: %d utterances in %d shards", target, len(rows), len(shards))
    return target / SHAR


def write_shard(shard: ShardOfFeatures) -> None:
    """Write ``cuts.N.jsonl.gz`` and ``features.N.tar``. The task's rows go with it."""
    rows = [json.loads(line) for line in shard.rows.read_text(encoding="utf-8").split("\n")[:-1]]
    with SharWriter(
        shard.folder,
        fields={"features": "numpy"},
        shard_size=len(rows),
        shard_offset=shard.number,
    ) as writer:
        for name, place, words, speaker in rows:
            writer.write(_cut(name, np.asarray(kaldiio.load_mat(place), dtype=np.float32), words, speaker))
    shard.rows.unlink()


def _rows(source: Path, seed: int, folder: Path) -> SortedRows:
    """Rows (place in the order, name, archive's place, words, speaker) in random order. Memory holds 16 bytes for each."""
    if not (source / "feats.scp").is_file():
        raise UserError(
            f"{source}: no feats.scp in it; a Shar folder is made of features, so of feats_type fbank or shar"
        )
    order = array("q", range(sum(1 for _ in sorted_table(source / "feats.scp"))))
    random.Random(seed).shuffle(order)
    places = array("q", order)
    for place, number in enumerate(order):
        places[number] = place
    texts, speakers = Lookup(source / "text"), Lookup(source / "utt2spk")
    rows = SortedRows(folder)
    for place, (name, archive) in zip(places, sorted_table(source / "feats.scp")):
        rows.add(f"{place:012d}", name, archive, texts[name], speakers[name])
    return rows


def _cut(name: str, matrix: np.ndarray, words: str, speaker: str) -> MonoCut:
    """A cut with features (T, F) in memory."""
    content = io.BytesIO()
    np.save(content, matrix, allow_pickle=False)
    seconds = len(matrix) / FRAMES_PER_SECOND
    stored = Features(
        type="kaldi-fbank",
        num_frames=len(matrix),
        num_features=matrix.shape[1],
        frame_shift=1 / FRAMES_PER_SECOND,
        sampling_rate=SAMPLING_RATE,
        start=0.0,
        duration=seconds,
        storage_type="memory_npy",
        storage_path="",
        storage_key=content.getvalue(),  # as lhotse keeps arrays in memory
        recording_id=name,
        channels=0,
    )
    said = SupervisionSegment(id=name, recording_id=name, start=0.0, duration=seconds, text=words, speaker=speaker)
    return MonoCut(id=name, start=0.0, duration=seconds, channel=0, supervisions=[said], features=stored)
