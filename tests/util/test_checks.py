"""Values against the annotations of options."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

import pytest

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_type

Colour = Literal["red", "blue"]


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int), (3, float), (0.5, float), (True, bool), (0, bool), ("a", str), ("red", Colour), (None, Optional[int]),
        ("x", Literal["x", Colour]), (3, Optional[int]), (None, Optional[Colour]), ([1], Union[float, list[int]]), ({}, Any),
    ],
)  # fmt: skip
def test_what_an_annotation_says_is_allowed(value: Any, annotation: Any) -> None:
    check_type("key", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "line"),
    [
        ("3", int, "key: '3' must be a whole number"),
        (2.5, int, "key: 2.5 must be a whole number"),
        (True, int, "key: True must be a whole number"),
        ("x", float, "key: 'x' must be a number"),
        (True, float, "key: True must be a number"),
        (2, bool, "key: 2 must be true or false"),
        ("yes", bool, "key: 'yes' must be true or false"),
        (3, str, "key: 3 must be text"),
        (None, int, "key: None must be a whole number"),
        ("x", Optional[int], "key: 'x' must be a whole number"),
        ("green", Colour, "key: 'green' is unknown; allowed: red, blue"),
        (None, Colour, "key: None is unknown; allowed: red, blue"),
        ("green", Optional[Colour], "key: 'green' is unknown; allowed: red, blue"),
    ],
)
def test_all_else_ends_in_one_line(value: Any, annotation: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        check_type("key", value, annotation)
    assert str(error.value) == line
