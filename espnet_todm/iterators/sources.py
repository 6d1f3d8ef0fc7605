"""Cuts of a manifest or of a Shar folder, read line by line. Their audio and features are read later, batch by batch.

lhotse reads the archives of a Shar folder from beginning to end, and its cuts hold their audio while they wait in the
sampler's buffer. Here cuts wait without it. A batch's utterances are read from the archives at their places, so the memory
is that of the cuts' descriptions, and a resumed run skips batches without reading audio.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from lhotse.cut import MonoCut
from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.utils import fastcopy

from espnet_todm.errors import UserError, damage_told
from espnet_todm.iterators.shar import Archive

ARCHIVES_OPEN = 64  # of a process; a buffer of shuffled cuts spans a few of them
# Kinds of storage that read files. Others load a page, run a command or unpickle.
STORED = ("lilcom_files", "lilcom_chunky", "lilcom_hdf5", "chunked_lilcom_hdf5", "numpy_files", "numpy_hdf5")
_ADVICE = "write it again"
_NEEDED = "features: stored needs features, on_the_fly and none need recording"
_MARK = "espnet_todm"  # in a cut's custom fields
_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?$")


class Share(NamedTuple):
    """The part of the cuts that a process reads."""

    rank: int = 0
    ranks: int = 1


ALL = Share()


def open_source(path: str, field: str, key: str) -> Union[Manifest, Shar]:
    """The source of cuts at ``path``, a manifest or a Shar folder.

    field: what is read of each cut, ``recording`` or ``features``. key: name of the option, for errors.
    Raises UserError where there is neither, and for a Shar folder that lacks the field or one of its archives.
    """
    place = Path(path)
    if place.is_dir():
        return _open_shar(place, field, key)
    if not place.is_file():
        raise UserError(f"{key}: {path}: no such file or folder")
    if not place.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{key}: {path}: cuts are in .jsonl or .jsonl.gz, or in a Shar folder")
    return Manifest(place, field)


def _open_shar(folder: Path, field: str, key: str) -> Shar:
    names = sorted(path.name for path in folder.iterdir())
    cuts = [name for name in names if _CUTS.match(name)]
    if not cuts:
        raise UserError(f"{key}: {folder}: no Shar folder: it has no cuts.000000.jsonl.gz")
    numbers = [_CUTS.match(name)[1] for name in cuts]  # type: ignore[index]
    archives = [f"{field}.{number}.tar" for number in numbers]
    lacking = [name for name in archives if name not in names]
    if len(lacking) == len(archives):
        there = ", ".join(sorted({name.split(".")[0] for name in names} - {"cuts"})) or "none"
        raise UserError(f"{key}: {folder}: its shards have no field {field}; they have: {there}; {_NEEDED}")
    if lacking:
        some = f"{len(lacking)} of {len(cuts)} shards have no {field}"
        raise UserError(f"{key}: {folder}: lacks {lacking[0]}; {some}; write them")
    return Shar(folder, field, tuple(cuts), tuple(archives))


@dataclass(frozen=True)
class Manifest:
    """Cuts of one file. Their audio, or their features, are in files of their own."""

    path: Path
    field: str

    def cuts(self, share: Share = ALL, order: Optional[str] = None) -> Iterator[MonoCut]:
        """Every ``share.ranks``-th cut, in the order of the file."""
        for cut in _read(self.path, share):
            _check_stored(cut, self.field, self.path)
            yield cut

    def fill(self, cut: MonoCut) -> MonoCut:
        """The cut with what is needed to load its data."""
        return cut


@dataclass(frozen=True)
class Shar:
    """Shards of cuts and their archives: ``cuts.N.jsonl.gz`` and ``<field>.N.tar``."""

    folder: Path
    field: str
    shards: tuple[str, ...]
    archives: tuple[str, ...]

    def cuts(self, share: Share = ALL, order: Optional[str] = None) -> Iterator[MonoCut]:
        """The cuts of every ``share.ranks``-th shard.

        order: seed of the order of the shards, the same for all ranks. None: by their numbers.
        Raises UserError if there are more ranks than shards.
        """
        if share.ranks > len(self.shards):
            raise UserError(
                f"{self.folder}: {len(self.shards)} shards, but {share.ranks} ranks, and each needs a shard; write smaller"
                " shards, or train with fewer ranks"
            )
        numbers = list(range(len(self.shards)))
        if order is not None:
            random.Random(order).shuffle(numbers)
        for number in numbers[share.rank :: share.ranks]:
            path = self.folder / self.shards[number]
            for place, cut in enumerate(_read(path)):
                if getattr(cut, self.field) is None:
                    raise UserError(f"{path}: {cut.id}: has no {self.field}")
                yield marked(cut, number=number, place=place, name=cut.id)

    def fill(self, cut: MonoCut) -> MonoCut:
        """The cut with its data. Raises UserError for a damaged archive, and for one of other cuts."""
        at = marks(cut)
        path = self.folder / self.archives[at["number"]]
        with damage_told(path, _ADVICE):
            manifest = _archive(str(path)).read(at["place"], at["name"])
        if "speed" in at:
            manifest = manifest.perturb_speed(at["speed"])
        return fastcopy(cut, **{self.field: manifest})


def marked(cut: MonoCut, **notes: Any) -> MonoCut:
    """The cut, which notes what its data are read with: its place in a Shar folder, its speed."""
    cut.custom = {**(cut.custom or {}), _MARK: {**marks(cut), **notes}}
    return cut


def marks(cut: MonoCut) -> dict[str, Any]:
    """What :func:`marked` noted."""
    return (cut.custom or {}).get(_MARK, {})


@lru_cache(maxsize=ARCHIVES_OPEN)
def _archive(path: str) -> Archive:
    return Archive(path)


def _read(path: Path, share: Share = ALL) -> Iterator[MonoCut]:
    with (
        damage_told(path, _ADVICE),
        (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines,
    ):
        for number, line in enumerate(lines):
            if number % share.ranks == share.rank:
                yield _cut(decode_json_line(line), path)


def _cut(described: Any, path: Path) -> MonoCut:
    kind = described.get("type") if isinstance(described, dict) else None
    if kind != "MonoCut":
        raise UserError(f"{path}: holds {kind or 'other things'}, but cuts of one channel (MonoCut) are expected")
    return deserialize_item(described)


def _check_stored(cut: MonoCut, field: str, path: Path) -> None:
    stored = getattr(cut, field)
    if stored is None:
        raise UserError(f"{path}: {cut.id}: has no {field}; {_NEEDED}")
    if field == "features" and stored.storage_type not in STORED:
        raise UserError(
            f"{path}: {cut.id}: its features are stored as {stored.storage_type}; allowed: {', '.join(STORED)}"
        )
    for source in stored.sources if field == "recording" else ():
        if source.type != "file":  # lhotse would run a command or load a page
            raise UserError(f"{path}: {cut.id}: its audio is a {source.type} ({source.source}), not a file")
