"""Phoneme targets: lexicons of every dialect, end-of-word marks, unknown words, and ESPnet reading the result."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_todm.errors import UserError
from espnet_todm.lm.lexicon import inventory, make_phonemes, read_lexicon, spell, spell_table
from espnet_todm.util.files import read_table, write_table
from espnet_todm.util.stage_marker import mark_complete

ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.txt"
    path.write_text("the DH AH\nthe(2) DH IY\ncat K AE T\na AH\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, texts in {"train": {"u1": "the cat", "u2": "a cat a the"}, "dev": {"u3": "the the"}}.items():
        write_table(tmp_path / "dump" / split / "text", texts)
        mark_complete(tmp_path / "dump" / split, {"stage": "filter"})
    return tmp_path / "dump"


@pytest.mark.parametrize(
    "content",
    [
        "cat K AE T\nthe DH AH\nthe DH IY\n",  # Kaldi's lexicon.txt
        ";;; a comment\nCAT  K AE1 T\nTHE  DH AH0\nTHE(1)  DH IY0\n",  # CMUdict
        "cat K AE1 T # an animal\nthe DH AH0\nthe(2) DH IY0\n\n",  # its newer form
        "CAT\tK AE1 T\nTHE\tDH AH0\nTHE\tDH IY0\n",  # LibriSpeech's
    ],
)
def test_the_first_pronunciation_of_every_dialect(tmp_path: Path, content: str) -> None:
    (tmp_path / "lexicon").write_text(content)
    assert read_lexicon(tmp_path / "lexicon") == {"cat": ("K", "AE", "T"), "the": ("DH", "AH")}


@pytest.mark.parametrize(
    "rows",
    [
        ["leche l e tS e", "ver b e r", "e e"],  # Spanish
        ["schön S 2: n", "zwölf ts v 9 l f", "öde 2 d @", "ee e:"],  # German in X-SAMPA
        ["deux d 2", "neuf n 9 f", "oeuf 9 f", "eux 2", "fee f ee"],  # French
        ["naïve n a\u026a \u02c8i\u02d0 v", "été e t e"],  # IPA
        ["ma m 1", "ba b 2", "yi 1", "er 2", "san s a n 3"],  # numbers of tones
        ["two 52 7 7", "one 1 52", "three 3 3"],  # units that are numbers
    ],
)
def test_phonemes_of_any_alphabet_are_kept(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "lexicon").write_text("".join(f"{row}\n" for row in rows))
    assert [(word, *of) for word, of in read_lexicon(tmp_path / "lexicon").items()] == [
        tuple(row.split()) for row in rows
    ]


def test_tones_are_kept_alike_and_stress_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "lexicon").write_text("ma1 M A1\nma2 M A2\nma3 M A3\n")
    assert inventory(read_lexicon(tmp_path / "lexicon")) == ["A1", "A1#", "A2", "A2#", "A3", "A3#", "M", "M#"]
    (tmp_path / "lexicon").write_text("er ER1\ner2 ER2\ner3 ER3\n")  # vowels of ARPAbet's, but three is no stress
    assert set(read_lexicon(tmp_path / "lexicon").values()) == {("ER1",), ("ER2",), ("ER3",)}
    (tmp_path / "lexicon").write_text("cat K AE1 T\nabout AH0 B AW1 T\nx EH2 K S\n")
    assert read_lexicon(tmp_path / "lexicon")["about"] == ("AH", "B", "AW", "T")


def test_words_and_phonemes_are_composed_as_transcripts_are(tmp_path: Path) -> None:
    (tmp_path / "lexicon").write_text("cafe\u0301\tk a f e\u0301\n", encoding="utf-8-sig")
    assert read_lexicon(tmp_path / "lexicon") == {"café": ("k", "a", "f", "é")}


def test_the_last_phoneme_of_each_word_is_marked(lexicon: Path) -> None:
    known = read_lexicon(lexicon)
    assert spell(["THE", "cat", "a"], known) == ["DH", "AH#", "K", "AE", "T#", "AH#"]
    assert spell(["the", "zebra"], known) == ["DH", "AH#", "<unk>"]
    assert spell([], known) == []


def test_arpabet_gives_the_78_phonemes_of_the_paper() -> None:
    phonemes = inventory({str(number): (one, one) for number, one in enumerate(ARPABET.split())})
    assert len(phonemes) == len(set(phonemes)) == 78  # 79 with the blank


def test_unknown_words_up_to_a_share(lexicon: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = read_lexicon(lexicon)
    texts = {"u1": "the cat zebra", "u2": "Zebra a a a a yak"}
    with pytest.raises(UserError, match=r"dev: 3 of 9 words \(33.33%\) are not in the lexicon: zebra \(2\), yak \(1\)"):
        spell_table(texts, known, 0.1, "dev")
    with caplog.at_level(logging.WARNING):
        assert spell_table(texts, known, 0.4, "dev")["u1"] == "DH AH# K AE T# <unk>"
    assert "they become <unk>" in caplog.text
    assert spell_table({"u1": "the"}, known, 0.0, "dev") == {"u1": "DH AH#"}


def test_espnet_reads_the_phonemes_back(lexicon: Path, data: Path, tmp_path: Path) -> None:
    folder = make_phonemes(lexicon, data, ["train", "dev"], tmp_path / "phone")
    tokens = (folder / "tokens.txt").read_text().splitlines()
    phonemes = ["AE", "AE#", "AH", "AH#", "DH", "DH#", "K", "K#", "T", "T#"]
    assert tokens == ["<blank>", "<unk>", *phonemes, "<sos/eos>"]
    assert read_table(folder / "dev" / "text") == {"u3": "DH AH# DH AH#"}
    tokenizer, converter = build_tokenizer("word"), TokenIDConverter(folder / "tokens.txt")
    for text in read_table(folder / "train" / "text").values():
        numbers = converter.tokens2ids(tokenizer.text2tokens(text))
        assert 1 not in numbers and tokenizer.tokens2text(converter.ids2tokens(numbers)) == text


def test_the_same_again_does_nothing_and_a_new_lexicon_everything(
    lexicon: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        make_phonemes(lexicon, data, ["train"], tmp_path / "phone")
    assert "complete already" in caplog.text
    lexicon.write_text(lexicon.read_text().replace("AE", "EH"))
    make_phonemes(lexicon, data, ["train"], tmp_path / "phone")
    assert "EH#" in (tmp_path / "phone" / "tokens.txt").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the\n", r"lexicon.txt:1: no phonemes; a line is a word and its phonemes"),
        ("a AH\nthe 1.0 DH AH\n", r"lexicon.txt:2: '1.0' is no phoneme; .* without probabilities"),
        ("a 1 AH\nthe 1 DH AH\n", r"lexicon.txt:1: '1' is no phoneme; .* without probabilities"),
        ("a AH\nthe 1e-05 DH AH\n", r"lexicon.txt:2: '1e-05' is no phoneme; .* without probabilities"),
        ("the DH AH#\n", r"lexicon.txt:1: 'AH#' is no phoneme"),
        ("the DH AH\n<UNK> <unk>\n", r"lexicon.txt:2: '<unk>' is no phoneme"),
        (";;; nothing\n\n", "lexicon.txt: no words in it"),
    ],
)
def test_unusable_lexicons_are_refused_in_words(lexicon: Path, content: str, message: str) -> None:
    lexicon.write_text(content)
    with pytest.raises(UserError, match=message):
        read_lexicon(lexicon)


def test_what_is_not_there_is_named(lexicon: Path, data: Path, tmp_path: Path) -> None:
    for missing in ("", "/nonexistent"):
        with pytest.raises(UserError, match=f"lexicon: '{missing}' is no file"):
            make_phonemes(missing, data, ["train"], tmp_path / "phone")
    with pytest.raises(UserError, match="test: not there or not complete"):
        make_phonemes(lexicon, data, ["test"], tmp_path / "phone")
    with pytest.raises(
        UserError, match="max_unknown_share: 2 is not allowed, it must be a finite number >= 0 and <= 1"
    ):
        make_phonemes(lexicon, data, ["train"], tmp_path / "phone", 2)
