"""Rows on disk come back sorted, whatever they hold and however few of them memory does."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.data.sorted_rows import SortedRows

ROWS = st.lists(st.tuples(st.text(max_size=4), st.text(st.characters(), max_size=9)), max_size=30)


@given(ROWS, st.integers(1, 8))
def test_rows_are_sorted_as_in_memory(rows: list[tuple[str, str]], in_memory: int) -> None:
    found = SortedRows(in_memory=in_memory)
    for row in rows:
        found.add(*row)
    assert len(found) == len(rows)
    assert list(found) == list(found) == sorted(rows)
    assert list(zip(found, found)) == [(row, row) for row in sorted(rows)]  # two readers at once


def test_rows_longer_than_a_block_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    found = SortedRows(tmp_path, in_memory=2)
    rows = [("b", "x" * 200_000), ("caf\udce9",), ("a", "two\nlines"), ("a",)]
    for row in rows:
        found.add(*row)
    assert list(found) == sorted(rows)
    found.add("0")
    assert list(found) == [("0",), *sorted(rows)]


def test_what_is_on_disk_has_no_name(tmp_path: Path) -> None:
    found = SortedRows(tmp_path, in_memory=1)
    found.add("a")
    assert os.listdir(tmp_path) == []
