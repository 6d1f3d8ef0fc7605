"""Tables in Markdown, and links of pages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_todm.util.files import PathLike


@dataclass(frozen=True)
class Table:
    """Names of the columns, and rows of as many cells. The first column names the row."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as ``markdown_table`` writes it."""
        return markdown_table(self.header, self.rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines ``|cell|cell|`` with a rule after the header, each with a final newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("|" + "|".join(cells) + "|\n" for cells in lines)


def link(path: PathLike, home: PathLike) -> str:
    """The path as a page in the folder ``home`` links it."""
    return Path(os.path.relpath(Path(path).resolve(), Path(home).resolve())).as_posix()
