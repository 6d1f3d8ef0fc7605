"""Stages 1 and 2 by several jobs: each makes the cuts of a piece of the input, and together they are one data folder.

The folder is the same, whatever the number of jobs. (``cuts.jsonl.gz`` is then several gzip members one after another, which
every reader of gzip takes for one file.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Union

from lhotse import CutSet
from lhotse.cut import MonoCut

from espnet_todm.data.tables import CUTS, DataFolder, Problem, cut_row
from espnet_todm.util.evenly import groups
from espnet_todm.util.files import make_folder, read_lines, to_json, write_text
from espnet_todm.util.launch import launch

PIECE = 10_000  # lines of the input in a task
Make = Callable[[Path], Iterator[Union[MonoCut, Problem]]]
"""A file of lines -> cuts and problems. It can be pickled."""


@dataclass(frozen=True)
class Piece:
    """One task: the lines in ``lines`` become what ``make`` makes of them."""

    folder: Path
    number: int
    make: Make

    @property
    def lines(self) -> Path:
        return self.folder / f"lines.{self.number:06d}.jsonl"

    @property
    def cuts(self) -> Path:
        return self.folder / f"cuts.{self.number:06d}.jsonl.gz"

    @property
    def rows(self) -> Path:
        """A list of arguments for ``DataFolder.add`` or of a problem in each line."""
        return self.folder / f"rows.{self.number:06d}.jsonl"


def in_one(rows: int, how: dict[str, Any]) -> bool:
    """Whether jobs do not pay: for one job, or when all is one piece."""
    return rows <= PIECE or (how.get("jobs", 1) == 1 and how.get("launcher", "local") == "local")


def write_pieces(folder: Path, lines: Iterable[str], make: Make, name: str, how: dict[str, Any]) -> DataFolder:
    """What ``write_data_folder`` does, by jobs. ``how`` goes to ``launch`` (jobs, launcher, logs).

    lines: with their ends. Raises JobError when a job fails.
    """
    home, pieces = make_folder(folder / "pieces"), []
    for number, group in enumerate(groups(lines, PIECE)):
        pieces.append(Piece(home, number, make))
        write_text(pieces[-1].lines, "".join(group))
    launch(write_piece, pieces, **{"name": name, **how})
    data = DataFolder(folder)
    with (folder / CUTS).open("wb") as joined:
        for piece in pieces:
            with piece.cuts.open("rb") as cuts:
                shutil.copyfileobj(cuts, joined)
            for row in map(json.loads, read_lines(piece.rows)):
                data.problems.add(Problem(*row)) if len(row) == 3 else data.add(*row)
    shutil.rmtree(home)
    data.write()
    return data


def write_piece(piece: Piece) -> None:
    """Write ``cuts`` and ``rows`` of a piece."""
    with CutSet.open_writer(piece.cuts) as cuts, piece.rows.open("w", encoding="utf-8", newline="\n") as rows:
        for one in piece.make(piece.lines):
            if isinstance(one, Problem):
                row: tuple[Any, ...] = (one.utterance, one.reason, one.detail)
            else:
                cuts.write(one)
                row = cut_row(one)
            rows.write(to_json(row) + "\n")
