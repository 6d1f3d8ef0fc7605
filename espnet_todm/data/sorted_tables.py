"""Kaldi tables as streams of sorted rows: written and read with memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Callable, Optional

from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, atomic_path, encode, read_lines, read_table, split_key, table_row

SPEAKERS = "utt2spk"


@contextmanager
def open_table(path: PathLike) -> Iterator[Callable[[str, str], None]]:
    """Yield what writes a row, key and value, of a table that appears when it is whole. Keys come sorted.

    Raises UserError for a key that comes twice, and as ``table_row``.
    """
    before = ""
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def write(key: str, value: str) -> None:
            nonlocal before
            if key == before:
                raise UserError(f"{path}: key {key!r} stands twice, but keys must be unique")
            before = key
            file.write(encode(path, table_row(path, key, value)))

        yield write


def write_tables(folder: Path, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write tables from sorted rows: a key and its value in each table; more values are left out.

    With ``utt2spk`` comes ``spk2utt``, for which memory holds the names of one speaker. Raises UserError as ``open_table``.
    """
    speaker = names.index(SPEAKERS) if SPEAKERS in names else None
    speakers = SortedRows(folder)
    with ExitStack() as tables:
        writers = [tables.enter_context(open_table(folder / name)) for name in names]
        for key, *values in rows:
            for write, value in zip(writers, values):
                write(key, value)
            if speaker is not None:
                speakers.add(values[speaker], key)
    if speaker is not None:
        with open_table(folder / "spk2utt") as write:
            for name, group in groupby(speakers, key=itemgetter(0)):
                write(name, " ".join(utterance for _, utterance in group))


def sorted_table(path: PathLike) -> Iterator[tuple[str, str]]:
    """The rows of a Kaldi table, sorted by key. One that stands in another order is sorted in memory.

    Raises UserError as ``read_table``.
    """
    return _rows(path) if _in_order(path) else iter(sorted(read_table(path).items()))


class Lookup:
    """The values of a Kaldi table for keys that are asked for in sorted order."""

    def __init__(self, path: PathLike) -> None:
        self._path, self._rows = path, sorted_table(path)

    def __getitem__(self, key: str) -> str:
        """Raises UserError where the table has no such key."""
        for found, value in self._rows:
            if found == key:
                return value
            if found > key:
                break
        raise UserError(f"{self._path}: no row for {key}")


def _rows(path: PathLike) -> Iterator[tuple[str, str]]:
    return (row for row in map(split_key, read_lines(path)) if row[0])


def _in_order(path: PathLike) -> bool:
    before: Optional[str] = None
    for key, _ in _rows(path):
        if before is not None and key <= before:
            return False
        before = key
    return True
