"""Token lists: ESPnet's order, sizes that the text allows, and the same tokens as ESPnet's tokenizers give."""

from __future__ import annotations

import gzip
import io
import unicodedata
from pathlib import Path
from unittest import mock

import pytest
import sentencepiece
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_todm.data import tokens as tokens_module
from espnet_todm.data.tokens import changed_words, characters, make_tokens, read_words
from espnet_todm.data.transcripts import plain_text
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


ANY_LANGUAGE = (
    "น้ำ ทำงาน",  # sara am, which NFKC takes apart
    "می\u200cروم می\u200cبینم",  # zero-width non-joiners
    "tiếng Việt là ngôn ngữ",
    "l'été déjà 한국어 ｶﾀｶﾅ",
    "ﬁn ½ m² … Straße",
)


@pytest.mark.parametrize("token_type", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_text_of_any_language_comes_back_from_the_tokens(tmp_path: Path, token_type: str, form: str, caplog) -> None:
    rows = (f"u{number} {unicodedata.normalize(form, line)}\n" for number, line in enumerate(ANY_LANGUAGE * 3))
    (tmp_path / "text").write_text("".join(rows), encoding="utf-8")
    size = {"unigram": 52, "bpe": 64, "char": None}[token_type]
    folder = make_tokens(token_type, size, [tmp_path / "text"], tmp_path / "tokens")
    model = {} if token_type == "char" else {"bpemodel": str(folder / "bpe.model")}
    tokenizer = build_tokenizer("char" if token_type == "char" else "bpe", **model)
    converter = TokenIDConverter(folder / "tokens.txt")
    for line in ANY_LANGUAGE:  # as the references have it, after stage 1
        numbers = converter.tokens2ids(tokenizer.text2tokens(plain_text(line)))
        assert tokenizer.tokens2text(converter.ids2tokens(numbers)) == plain_text(line)
    assert "cannot write" not in caplog.text


def test_what_the_tokens_cannot_write_is_said(tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [*read_words(text), "ﬁn zero ﬁn", "a½"]
    folding = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=folding, vocab_size=30, character_coverage=1.0, minloglevel=2
    )
    assert changed_words(folding.getvalue(), lines) == {("ﬁn", "fin"): 2, ("a½", "a1\u20442"): 1}
    with mock.patch.object(tokens_module, "train_sentencepiece", lambda *_: folding.getvalue()):
        make_tokens("unigram", 30, [text], tmp_path / "first")
        assert "cannot write" not in caplog.text
        text.write_text(text.read_text() + "x1 ﬁn ﬁn\n")
        make_tokens("unigram", 30, [text], tmp_path / "second")
    assert "cannot write 1 different words (2 in all)" in caplog.text and "'ﬁn' as 'fin' (2)" in caplog.text


@pytest.mark.parametrize("token_type", ["unigram", "bpe"])
def test_lines_of_any_length_are_trained_on(text: Path, tmp_path: Path, token_type: str) -> None:
    long = " ".join(["THE SONG"] * 600 + ["ZEBRA QUIZ"])
    assert len(long) > 4192  # bytes, beyond which sentencepiece leaves lines out unless told
    text.write_text(text.read_text() + f"x1 {long}\n")
    folder = make_tokens(token_type, 34, [text], tmp_path / "tokens")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    assert model.unk_id() not in model.encode(long)


def test_text_with_the_mark_of_tokens_in_it_is_refused(text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text() + "x1 A ▁ B\n")
    for token_type in ("unigram", "char"):
        with pytest.raises(
            UserError, match=r"the text holds ▁ \(U\+2581\), which stands for spaces in tokens: 'A ▁ B'"
        ):
            make_tokens(token_type, 30, [text], tmp_path / "tokens")


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
