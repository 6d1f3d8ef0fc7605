"""Many in groups, or a few of them, evenly spread: neighbours in a corpus are often of one speaker."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Optional, TypeVar

from espnet_todm.util.checks import check_number

T = TypeVar("T")


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many items at a time, the last group with what is left; read as they are asked for."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def evenly(items: Collection[T], count: Optional[int]) -> Iterator[T]:
    """So many of the items in their order, from the first on; all if there are no more, or if ``count`` is None.

    Raises UserError below 1.
    """
    if count is None or count >= len(items):
        return iter(items)
    check_number("utterances", count, at_least=1, whole=True)
    return _at_places(items, (index * len(items) // count for index in range(count)))


def _at_places(items: Iterable[T], places: Iterator[int]) -> Iterator[T]:
    """The items at ascending places."""
    wanted = next(places, None)
    for place, item in enumerate(items):
        if place == wanted:
            yield item
            wanted = next(places, None)
            if wanted is None:
                return
