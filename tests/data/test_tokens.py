"""Token lists: ESPnet's order, sizes that the text allows, and the same tokens as ESPnet's tokenizers give."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import sentencepiece
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_todm.data.tokens import characters, make_tokens, read_words
from espnet_todm.errors import UserError
from tests.tiny_corpus import words


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("".join(f"utt{n} {words(n)}\n" for n in range(40)))
    return path


@pytest.mark.parametrize("token_type", ["unigram", "bpe"])
def test_espnet_reads_the_tokens_back(text: Path, tmp_path: Path, token_type: str) -> None:
    folder = make_tokens(token_type, 28, [text], tmp_path / "tokens")
    tokens = (folder / "tokens.txt").read_text().splitlines()
    assert tokens[0] == "<blank>" and tokens[1] == "<unk>" and tokens[-1] == "<sos/eos>"
    assert len(tokens) == len(set(tokens)) == 28
    tokenizer = build_tokenizer("bpe", bpemodel=str(folder / "bpe.model"))
    converter = TokenIDConverter(folder / "tokens.txt")
    for line in read_words(text):
        numbers = converter.tokens2ids(tokenizer.text2tokens(line))
        assert 1 not in numbers  # no <unk>
        assert tokenizer.tokens2text(converter.ids2tokens(numbers)) == line


def test_characters_in_order_of_frequency(text: Path, tmp_path: Path) -> None:
    folder = make_tokens("char", None, [text], tmp_path / "tokens")
    tokens = (folder / "tokens.txt").read_text().splitlines()
    everything = "".join(read_words(text))
    counts = [everything.count(" " if token == "<space>" else token) for token in tokens[2:-1]]
    assert counts == sorted(counts, reverse=True) and min(counts) > 0
    assert set(everything) == {" " if token == "<space>" else token for token in tokens[2:-1]}
    assert not (folder / "bpe.model").exists()
    converter = TokenIDConverter(folder / "tokens.txt")
    assert 1 not in converter.tokens2ids(build_tokenizer("char").text2tokens("IT'S A SONG"))


def test_ties_between_characters_do_not_depend_on_the_order_of_lines() -> None:
    assert characters(["ba", "dc"]) == characters(["dc", "ba"]) == ["a", "b", "c", "d"]


def test_extra_text_is_used_and_the_same_text_gives_the_same_model(text: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.gz"
    with gzip.open(extra, "wt") as file:
        file.write("x1 ZEBRA QUILT\nx2 ZEBRA\n")
    first = make_tokens("unigram", 34, [text, extra], tmp_path / "first")
    second = make_tokens("unigram", 34, [text, extra], tmp_path / "second")
    assert (first / "bpe.model").read_bytes() == (second / "bpe.model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_file=str(first / "bpe.model"))
    assert model.unk_id() not in model.encode("ZEBRA QUILT")


@pytest.mark.parametrize(("token_type", "size"), [("unigram", 5000), ("bpe", 5000), ("unigram", 5), ("bpe", 5)])
def test_sizes_that_cannot_be_name_one_that_can(text: Path, tmp_path: Path, token_type: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"token_size: {size} is too (large|small) for .*(most|least) (\d+)") as caught:
        make_tokens(token_type, size, [text], tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    allowed = int(caught.value.args[0].split("least" if size == 5 else "most")[1].split()[0])
    make_tokens(token_type, allowed, [text], tmp_path / "tokens")  # the number named is allowed indeed


def test_unusable_text_is_refused_in_words(text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("utt1\nutt2 \n")
    (tmp_path / "latin").write_bytes(b"utt1 caf\xe9\n")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"utt1 WORDS\n" * 100)[:30])
    for name, message in {
        "none": "no such file", "empty": "no words in it", "latin": "latin:1: not UTF-8", "broken.gz": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            make_tokens("unigram", 20, [text, tmp_path / name], tmp_path / "tokens")


@pytest.mark.parametrize(("token_type", "size"), [("unigram", None), ("bpe", 0), ("word", 10)])
def test_impossible_types_and_sizes(text: Path, tmp_path: Path, token_type: str, size: int | None) -> None:
    with pytest.raises(UserError, match="token_"):
        make_tokens(token_type, size, [text], tmp_path / "tokens")
