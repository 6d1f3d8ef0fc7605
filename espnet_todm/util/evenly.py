"""A few of many, evenly spread: neighbours in a corpus are often of one speaker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, TypeVar

from espnet_todm.util.checks import check_number

T = TypeVar("T")


def evenly(items: Sequence[T], count: Optional[int]) -> list[T]:
    """So many of the items in their order, from the first on; all if there are no more, or if ``count`` is None.

    Raises UserError below 1.
    """
    if count is None or count >= len(items):
        return list(items)
    check_number("utterances", count, at_least=1, whole=True)
    return [items[index * len(items) // count] for index in range(count)]
