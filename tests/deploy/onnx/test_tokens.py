"""tokens.txt, as sherpa-onnx splits it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.onnx.tokens import runtime_tokens, tokens_text
from espnet_todm.errors import UserError


def test_blank_and_space_have_the_runtimes_names() -> None:
    assert runtime_tokens(["<blank>", "<unk>", "<space>", "A"], 0) == ["<blk>", "<unk>", "▁", "A"]
    assert tokens_text(["<blk>", "▁THE"]) == "<blk> 0\n▁THE 1\n"


@pytest.mark.parametrize("token", ["", "two words", " ", "tab\t"])
def test_a_token_that_no_line_holds_is_named(token: str) -> None:
    with pytest.raises(UserError, match="token_list: token 2 is "):
        runtime_tokens(["<blank>", "A", token], 0)


def test_a_second_blank_is_named() -> None:
    with pytest.raises(UserError, match="token_list: token 1 is <blk>, but token 0 is the blank"):
        runtime_tokens(["<blank>", "<blk>"], 0)


def test_two_marks_of_words_are_named() -> None:
    with pytest.raises(UserError, match=r"token_list: token 1 is <space> and token 3 is '▁'; allowed: .* not both"):
        runtime_tokens(["<blank>", "<space>", "A", "▁"], 0)


words = st.text(st.characters(blacklist_categories=["Zs", "Cc", "Zl", "Zp", "Cs"]), min_size=1, max_size=4)


@given(st.lists(words.filter(lambda word: word not in ("<blk>", "<space>") and word.split() == [word]), max_size=20))
def test_the_file_gives_the_tokens_back(tokens: list[str]) -> None:
    names = runtime_tokens(["<blank>", *tokens], 0)
    pieces = tokens_text(names).split()  # as the runtime reads it: a symbol, a number, and so on
    assert pieces[::2] == ["<blk>", *tokens]
    assert [int(number) for number in pieces[1::2]] == list(range(len(tokens) + 1))
