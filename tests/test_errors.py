"""Others' words in a message of ours: always one line, never without a word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.errors import last_line, one_line


@given(st.text())
def test_a_message_is_one_bounded_line(message: str) -> None:
    words = one_line(ValueError(message), limit=50)
    assert words and len(words.splitlines()) == 1 and len(words) <= 50 + len(" ...")


def test_a_message_keeps_its_words() -> None:
    assert one_line(ValueError("no such\n  operator set")) == "no such operator set"
    assert one_line(ValueError("a" * 60), limit=50) == "a" * 50 + " ..."
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_the_last_line_is_one_that_says_something() -> None:
    assert last_line("loading\n terminate called \n\n  \n") == "terminate called"
    assert last_line("b" * 400) == "b" * 300
    assert last_line(" \n") == ""
