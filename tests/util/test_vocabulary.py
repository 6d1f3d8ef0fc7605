"""Which token lists can be used, and whether a list is the one that a model was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.util.vocabulary import (
    check_marks,
    check_record,
    check_same,
    check_tokens,
    trained_tokens,
    write_record,
)

TOKENS = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]


def test_lists_of_one_kind_pass() -> None:
    for tokens in (TOKENS, ["<blank>", "<space>", "a"], ["<blank>", "▁a", "b"]):
        check_marks(tokens)
        check_tokens(tokens)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["\ufeff<blank>", "a"], r"token 0 is '\\ufeff<blank>'; take the byte order mark out"),
        (["<blank>", "<space>", "▁a"], "token 1 is <space> and token 2 is '▁a'; allowed: .* not both"),
        (["<unk>", "a"], "has 2 tokens, but no <blank>"),
        (["<blank>", "a", "a"], "'a' stands twice"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tokens: list[str], words: str) -> None:
    with pytest.raises(UserError, match=f"^token_list: {words}"):
        check_marks(tokens)
        check_tokens(tokens)


def test_the_option_is_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("<blank>\na \n", encoding="utf-8")
    assert trained_tokens(tmp_path / "tokens.txt") == trained_tokens(["<blank>", "a"]) == ["<blank>", "a"]
    with pytest.raises(UserError, match=r"^token_list: .*none\.txt: no such file"):
        trained_tokens(tmp_path / "none.txt")
    (tmp_path / "tokens.txt").write_bytes(b"\xe4\n")
    with pytest.raises(UserError, match=r"^token_list: .*tokens\.txt: not UTF-8"):
        trained_tokens(tmp_path / "tokens.txt")


def test_the_record_tells_lists_and_sentencepiece_models_apart(tmp_path: Path) -> None:
    (model := tmp_path / "bpe.model").write_bytes(b"one")
    check_record(tmp_path, TOKENS, model, "x")  # older trainings wrote none
    write_record(tmp_path, TOKENS, model)
    check_record(tmp_path, TOKENS, model, "x")
    with pytest.raises(UserError, match=r"^x: its token list is not the one in .*vocabulary\.json"):
        check_record(tmp_path, [*TOKENS[:2], "b", "a", TOKENS[-1]], model, "x")
    with pytest.raises(UserError, match=r"^x: its number of tokens is not the one in .*vocabulary\.json"):
        check_record(tmp_path, TOKENS[:-1], model, "x")
    model.write_bytes(b"two")
    with pytest.raises(UserError, match=r"^x: .*bpe\.model is not the sentencepiece model in .*vocabulary\.json"):
        check_record(tmp_path, TOKENS, model, "x")
    (tmp_path / "vocabulary.json").write_text("[]")
    with pytest.raises(UserError, match=r"vocabulary\.json: damaged: no record of tokens"):
        check_record(tmp_path, TOKENS, model, "x")


def test_the_first_difference_is_named() -> None:
    check_same(TOKENS, list(TOKENS), "exp")
    with pytest.raises(UserError, match=r"^exp: was trained with other tokens: number 2 was 'a', and is 'b' now"):
        check_same(TOKENS, ["<blank>", "<unk>", "b"], "exp")
    with pytest.raises(UserError, match="number 4 was '<sos/eos>', and is nothing now"):
        check_same(TOKENS, TOKENS[:-1], "exp")
