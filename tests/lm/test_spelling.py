"""How words are written in tokens, and the text that a language model is made of."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_todm.data.tokens import make_tokens
from espnet_todm.errors import UserError
from espnet_todm.lm.lm_text import make_lm_text
from espnet_todm.lm.ngram import estimate, make_ngram, write_arpa
from espnet_todm.lm.spelling import (
    Part,
    holds_pronunciations,
    make_lexicon,
    read_pronunciations,
    read_spellings,
    read_tokens,
    word_parts,
)

LINES = ("u1 THE CAT SAT ON A MAT", "u2 A SONG TO ME", "u3 THE CAT SANG")


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    (tmp_path / "transcripts").write_text("".join(f"{line}\n" for line in LINES))
    return tmp_path / "transcripts"


def test_parts_of_the_kinds_of_tokens() -> None:
    assert word_parts(["<blank>", "A", "<space>"])[1:] == [Part(False, "A"), Part(True, "")]
    assert word_parts(["<blank>", "▁A", "B", "▁"])[1:] == [Part(True, "A"), Part(False, "B"), Part(True, "")]
    assert word_parts(["<blank>", "AH", "B#"])[1:] == [Part(True, "AH"), Part(True, "B#")]
    with pytest.raises(UserError, match="token 2 is <space> and token 1 is '▁A'"):
        word_parts(["<blank>", "▁A", "<space>"])


def test_a_token_list_is_read_as_espnet_reads_it(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_bytes("<blank>\r\n\u2028\n\u3000 \na\x85b\nc\t\n<unk>\n".encode())
    found = read_tokens(tmp_path / "tokens.txt")
    assert found == TokenIDConverter(tmp_path / "tokens.txt").token_list
    assert found == ["<blank>", "\u2028", "\u3000", "a\x85b", "c", "<unk>"]
    (tmp_path / "tokens.txt").write_text("<blank>\na\n", encoding="utf-8-sig")
    assert read_tokens(tmp_path / "tokens.txt") == ["<blank>", "a"]


def test_words_with_other_spaces_in_them_are_left_out_of_the_lexicon(tmp_path: Path, caplog) -> None:
    write_arpa(estimate(["a b", "b a"], 2), tmp_path / "lm.arpa")
    arpa = (tmp_path / "lm.arpa").read_text().replace("\tb\t", "\tb\u00a0a\t").replace(" b", " b\u00a0a")
    (tmp_path / "lm.arpa").write_text(arpa, encoding="utf-8")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/tokens.txt").write_text("<blank>\na\nb\n\u00a0\n<space>\n<sos/eos>\n", encoding="utf-8")
    lexicon = make_lexicon(tmp_path / "lm.arpa", tmp_path / "tokens", tmp_path / "lexicon") / "lexicon.txt"
    assert len(read_spellings(lexicon, read_tokens(tmp_path / "tokens/tokens.txt"))) == 1
    assert "1 of 2 words cannot be written" in caplog.text


@pytest.mark.parametrize(("token_type", "size"), [("char", None), ("unigram", 20), ("bpe", 25)])
def test_every_word_of_the_model_is_spelled(transcripts: Path, tmp_path: Path, token_type: str, size) -> None:
    make_tokens(token_type, size, [transcripts], tmp_path / "tokens")
    make_lm_text([transcripts], [], tmp_path / "text")
    arpa = make_ngram(tmp_path / "text", tmp_path / "lm", 2, 1) / "lm.arpa"
    lexicon = make_lexicon(arpa, tmp_path / "tokens", tmp_path / "lexicon") / "lexicon.txt"
    tokens = read_tokens(tmp_path / "tokens/tokens.txt")
    spellings = read_spellings(lexicon, tokens)
    words = {word for line in LINES for word in line.split()[1:]}
    assert {line.split()[0] for line in lexicon.read_text().splitlines()} == words and len(spellings) == len(words)
    assert all(0 < token < len(tokens) - 1 for spelling in spellings for token in spelling)


def test_words_that_the_tokens_cannot_write_are_left_out(transcripts: Path, tmp_path: Path, caplog) -> None:
    make_tokens("char", None, [transcripts], tmp_path / "tokens")
    (tmp_path / "more.gz").write_bytes(gzip.compress(b"THE QUIZ\n\n A CAT \n"))
    make_lm_text([transcripts], [tmp_path / "more.gz"], tmp_path / "text")
    assert (tmp_path / "text/text").read_text().splitlines()[3:] == ["THE QUIZ", "A CAT"]
    arpa = make_ngram(tmp_path / "text", tmp_path / "lm", 2, 1) / "lm.arpa"
    lexicon = make_lexicon(arpa, tmp_path / "tokens", tmp_path / "lexicon") / "lexicon.txt"
    assert "QUIZ" not in lexicon.read_text() and "1 of 11 words cannot be written" in caplog.text
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokens.txt").write_text("<blank>\nx\n<space>\n<sos/eos>\n")
    with pytest.raises(UserError, match=r"none of .* 11 words"):
        make_lexicon(arpa, tmp_path / "other", tmp_path / "lexicon2")


def test_an_utterance_of_two_tables_counts_once(transcripts: Path, tmp_path: Path) -> None:
    (tmp_path / "more.gz").write_bytes(gzip.compress(b"u2 A SONG TO ME\nu4 THE MAT\n"))
    make_lm_text([transcripts, tmp_path / "more.gz"], [], tmp_path / "text")
    found = (tmp_path / "text/text").read_text().splitlines()
    assert found == [*(line.partition(" ")[2] for line in LINES), "THE MAT"]


def test_text_in_phonemes(transcripts: Path, tmp_path: Path) -> None:
    (tmp_path / "dict").write_text("THE DH AH\nCAT K AE T\nA AH\n")
    make_lm_text([transcripts], [], tmp_path / "text", tmp_path / "dict")
    first = (tmp_path / "text/text").read_text().splitlines()[0]
    assert first == "DH AH# K AE T# <unk> <unk> AH# <unk>"


def test_stages_are_made_anew_when_their_input_changes(transcripts: Path, tmp_path: Path) -> None:
    make_lm_text([transcripts], [], tmp_path / "text")
    arpa = make_ngram(tmp_path / "text", tmp_path / "lm", 2, 1) / "lm.arpa"
    first = arpa.stat().st_mtime_ns
    make_ngram(tmp_path / "text", tmp_path / "lm", 2, 1)
    assert arpa.stat().st_mtime_ns == first
    transcripts.write_text("u1 THE DOG\n")
    make_lm_text([transcripts], [], tmp_path / "text")
    make_ngram(tmp_path / "text", tmp_path / "lm", 2, 1)
    assert "DOG" in arpa.read_text() and "CAT" not in arpa.read_text()


def test_text_written_in_another_way_is_refused(transcripts: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("the cat sat\n")
    with pytest.raises(UserError, match=r"lm_text: .*more shares no word.*written alike"):
        make_lm_text([transcripts], [tmp_path / "more"], tmp_path / "text")
    with pytest.raises(UserError, match=r"none: no such file"):
        make_lm_text([transcripts], [tmp_path / "none"], tmp_path / "text")


def test_words_in_phonemes(tmp_path: Path, caplog) -> None:
    write_arpa(estimate(["THE CAT", "A CAT", "A QUIZ"], 2), tmp_path / "lm.arpa")
    (tmp_path / "dict").write_text("the DH AH\ncat K AE T\nA AH\n")
    (tmp_path / "tokens").mkdir()
    tokens = ["<blank>", "<unk>", "AE", "AH", "AH#", "DH", "K", "T", "T#", "<sos/eos>"]
    (tmp_path / "tokens/tokens.txt").write_text("".join(f"{token}\n" for token in tokens))
    made = make_lexicon(tmp_path / "lm.arpa", tmp_path / "tokens", tmp_path / "lexicon", tmp_path / "dict")
    lexicon = made / "lexicon.txt"
    assert set(lexicon.read_text().splitlines()) == {"THE DH AH#", "CAT K AE T#", "A AH#"}
    assert "1 of 4 words cannot be written" in caplog.text
    assert holds_pronunciations(lexicon, tokens)
    assert ("CAT", [6, 2, 8]) in read_pronunciations(lexicon, tokens)
    with pytest.raises(UserError, match="the tokens make 'AH#', not 'A'"):
        read_spellings(lexicon, tokens)


def test_a_lexicon_of_phonemes_themselves_holds_no_pronunciations(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("AH# AH#\nK K\n")
    assert not holds_pronunciations(tmp_path / "lexicon.txt", ["<blank>", "AH#", "K"])
    assert not holds_pronunciations(tmp_path / "none", ["<blank>", "A#", "<space>"])  # characters; # is one
