"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
