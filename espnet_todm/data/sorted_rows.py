"""Sorting more rows than memory holds. The data stages use this in place of a dictionary of all utterances."""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Optional

from espnet_todm.util.files import PathLike

IN_MEMORY = 50_000  # rows
_BLOCK = 1 << 15  # bytes of each run that are read at once


class SortedRows:
    """Rows of strings, added in any order and read in sorted order, as often as wanted.

    Memory holds ``in_memory`` rows and a block of each sorted run. The runs are in a file without a name in ``folder``, by
    default the system's for temporary files (``TMPDIR``); it ends with the object, however the process ends.
    """

    def __init__(self, folder: Optional[PathLike] = None, in_memory: int = IN_MEMORY) -> None:
        self._folder, self._most = folder, in_memory
        self._rows: list[tuple[str, ...]] = []
        self._file: Optional[IO[bytes]] = None
        self._runs: list[tuple[int, int]] = []  # where each begins and ends in the file
        self._spilled = 0

    def add(self, *row: str) -> None:
        """Add a row. Not while rows are being read."""
        self._rows.append(row)
        if len(self._rows) >= self._most:
            self._spill()

    def __len__(self) -> int:
        return self._spilled + len(self._rows)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        self._rows.sort()
        return heapq.merge(*(self._run(begin, end) for begin, end in self._runs), iter(self._rows))

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # ends with the object
        self._rows.sort()
        begin = self._file.tell()
        self._file.writelines(json.dumps(row).encode() + b"\n" for row in self._rows)
        self._file.flush()
        self._runs.append((begin, self._file.tell()))
        self._spilled += len(self._rows)
        self._rows = []

    def _run(self, place: int, end: int) -> Iterator[tuple[str, ...]]:
        assert self._file is not None
        rest = b""
        while place < end:
            block = os.pread(self._file.fileno(), min(_BLOCK, end - place), place)
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield tuple(json.loads(line))
