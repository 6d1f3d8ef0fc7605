"""tokens.txt, as sherpa-onnx splits it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.onnx.folder import join_tokens, read_tokens
from espnet_todm.deploy.onnx.tokens import runtime_tokens, tokens_text
from espnet_todm.errors import UserError


def test_blank_and_space_have_the_runtimes_names() -> None:
    assert runtime_tokens(["<blank>", "<unk>", "<space>", "A"], 0, "char") == ["<blk>", "<unk>", "▁", "A"]
    assert tokens_text(["<blk>", "▁THE"]) == "<blk> 0\n▁THE 1\n"


@pytest.mark.parametrize("token_type", ["word", "phn"])
def test_a_token_that_is_a_word_begins_one(token_type: str) -> None:
    names = runtime_tokens(["<blank>", "<unk>", "HH", "AH0", "▁", "<sos/eos>"], 0, token_type)
    assert names == ["<blk>", "<unk>", "▁HH", "▁AH0", "▁▁", "<sos/eos>"]
    assert join_tokens([names[i] for i in (2, 3, 3, 4)]) == "HH AH0 AH0 ▁"


@pytest.mark.parametrize("token", ["", "two words", " ", "tab\t"])
def test_a_token_that_no_line_holds_is_named(token: str) -> None:
    with pytest.raises(UserError, match="token_list: token 2 is "):
        runtime_tokens(["<blank>", "A", token], 0, "char")


@pytest.mark.parametrize(
    ("tokens", "token_type", "message"),
    [
        (["<blank>", "<blk>"], "char", "token_list: token 1 is <blk>, but token 0 is the blank"),
        (["<blank>", "a", "b", "a"], "char", r"token_list: tokens 1 and 3 \('a' and 'a'\) are both 'a' on the device"),
        (["<blank>", "a▁b"], "bpe", "token_list: token 1 is 'a▁b', which runtimes write as it stands"),
        (["<blank>", "▁▁"], "bpe", "token_list: token 1 is '▁▁', which runtimes write as it stands"),
        (
            ["<blank>", "▁a", "<0xE4>"],
            "bpe",
            "token 2 is '<0xE4>', which runtimes write as it stands; needed: .*byte_f",
        ),
        (
            ["<blank>", "Ġthe"],
            "hugging_face",
            "token_type: 'hugging_face' cannot be exported; allowed: bpe, char, word",
        ),
        (["<blank>", "the"], "whisper_en", "token_type: 'whisper_en' cannot be exported"),
    ],
)
def test_what_the_device_would_write_otherwise_is_refused(tokens: list[str], token_type: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        runtime_tokens(tokens, 0, token_type)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("symbol", ["\u00a0", "a\u3000b", "\u2028", "\u0085", "\u001c"])
def test_other_spaces_than_asciis_are_characters(symbol: str, tmp_path: Path) -> None:
    """As in sherpa-onnx, which splits lines in the C locale."""
    names = runtime_tokens(["<blank>", symbol, "b"], 0, "char")
    (tmp_path / "tokens.txt").write_text(tokens_text(names), encoding="utf-8", newline="")
    assert read_tokens(tmp_path / "tokens.txt") == ["<blk>", symbol, "b"]


def test_two_marks_of_words_are_named() -> None:
    with pytest.raises(UserError, match=r"token_list: token 1 is <space> and token 3 is '▁'; allowed: .* not both"):
        runtime_tokens(["<blank>", "<space>", "A", "▁"], 0, "char")


words = st.text(st.characters(blacklist_categories=["Zs", "Cc", "Zl", "Zp", "Cs"]), min_size=1, max_size=4)
lists = st.lists(
    words.filter(lambda word: word not in ("<blk>", "<space>", "<unk>", "<sos/eos>") and word.split() == [word]),
    max_size=20,
    unique=True,
)


@given(lists)
def test_the_file_gives_the_tokens_back(tokens: list[str]) -> None:
    names = runtime_tokens(["<blank>", *tokens], 0, "char")
    pieces = tokens_text(names).split()  # as the runtime reads it: a symbol, a number, and so on
    assert pieces[::2] == ["<blk>", *tokens]
    assert [int(number) for number in pieces[1::2]] == list(range(len(tokens) + 1))


@given(lists)
def test_words_come_back_with_single_spaces(tokens: list[str]) -> None:
    assert join_tokens(runtime_tokens(["<blank>", *tokens], 0, "word")[1:]) == " ".join(tokens)
