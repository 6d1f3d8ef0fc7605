"""ARPA files of other toolkits: headings, words with spaces of other kinds, models without <unk>."""

from __future__ import annotations

import gzip
import logging
import math
from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import Arpa, measure_perplexity, read_vocabulary
from espnet_todm.lm.lm_text import report_perplexity
from espnet_todm.lm.spelling import make_lexicon
from espnet_todm.util.files import read_json, write_table

MODEL = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.6\t</s>
-0.5\ta\t-0.2
-0.7\tb\t-0.1

\\2-grams:
-0.4\t<s> a
-0.3\ta b

\\end\\
"""
SCORES = [-0.4, -0.3, -0.1 - 0.6]  # of "a b"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        MODEL,
        "\n\n" + MODEL,
        "# made by a filter\n\n" + MODEL,
        "A model of MITLM's\nin two lines\n" + MODEL,
        "\ufeff" + MODEL,
        MODEL.replace("\n", "\r\n"),
        MODEL.replace("-99", "-inf"),
        MODEL + "\nwhat a program added\n",
    ],
)
def test_models_of_other_toolkits_score_alike_here_and_in_kenlm(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert Arpa(path).score(["a", "b"]) == pytest.approx(SCORES) and read_vocabulary(path) == ["a", "b"]
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from espnet_todm.decode.word_model import WordModel

    model = WordModel(["<blank>", "a"], (), str(path))
    state, first = model.score(model.start(), "a")
    state, second = model.score(state, "b")
    assert [one / math.log(10) for one in (first, second, model.finish(state))] == pytest.approx(SCORES, abs=1e-5)


@pytest.mark.parametrize("word", ["b\u00a0c", "b\u3000c", "b\u2028c", "b\x85c", "b\x0bc", "x-grams:", "\\1-grams:"])
def test_words_are_split_at_ascii_spaces_alone(tmp_path: Path, word: str) -> None:
    path = written(tmp_path, MODEL.replace("\tb\t", f"\t{word}\t").replace("a b", f"a {word}"))
    assert read_vocabulary(path) == ["a", word]
    assert Arpa(path).score(["a", word]) == pytest.approx(SCORES)


def test_the_capital_unknown_word_is_the_unknown_word(tmp_path: Path) -> None:
    small, capital = Arpa(written(tmp_path, MODEL)), Arpa(written(tmp_path, MODEL.replace("<unk>", "<UNK>")))
    assert small.entries == capital.entries and read_vocabulary(tmp_path / "lm.arpa") == ["a", "b"]


def test_letters_in_parts_are_those_of_plain_text(tmp_path: Path) -> None:
    path = written(tmp_path, MODEL.replace("\tb\t", "\tcafe\u0301\t").replace("a b", "a cafe\u0301"))
    for word in ("café", "cafe\u0301"):
        assert measure_perplexity(path, [f"a {word}"]).log_prob == pytest.approx(sum(SCORES))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/tokens.txt").write_text("<blank>\na\nc\nf\né\n<space>\n", encoding="utf-8")
    lexicon = make_lexicon(path, tmp_path / "tokens", tmp_path / "lexicon") / "lexicon.txt"
    assert lexicon.read_text(encoding="utf-8") == "a a\ncafé c a f é\n"
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from espnet_todm.decode.word_model import WordModel

    model = WordModel(["<blank>", "a"], (), str(path))
    assert model.score(model.score(model.start(), "a")[0], "café")[1] / math.log(10) == pytest.approx(-0.3, abs=1e-5)


def test_without_an_unknown_word_kenlms_probability_and_numbers_in_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, MODEL.replace("-1.0\t<unk>\n", "").replace("1=5", "1=4"))
    write_table(tmp_path / "data/dev/text", {"u1": "a zebra", "u2": "a b"})
    with caplog.at_level(logging.WARNING):
        report_perplexity(path, tmp_path / "data", ["dev"], tmp_path / "out")
    assert caplog.text.count("has no <unk>") == 1
    found = read_json(tmp_path / "out/perplexity.json")["dev"]
    known = measure_perplexity(path, ["a b"])
    unknown = -0.2 - 100  # the back-off of "a", and what KenLM gives to any word
    assert found["unknown"] == 1 and found["unknown_log_prob"] == pytest.approx(unknown)
    assert found["log_prob"] == pytest.approx(-0.4 + unknown - 0.6 + known.log_prob)
    assert math.isfinite(found["perplexity"])
    assert found["perplexity_of_known"] == pytest.approx(10 ** ((0.4 + 0.6 - known.log_prob) / 5))


def test_impossible_words_and_weights_give_a_number(tmp_path: Path) -> None:
    path = written(tmp_path, MODEL.replace("-1.0\t<unk>", "-inf\t<unk>").replace("a\t-0.2", "a\t-inf"))
    path.write_text(path.read_text().replace("\t<s>\t-0.3", "\t<s>\t-1e9"))
    found = measure_perplexity(path, ["zebra zebra", "a zebra"] * 3)
    assert math.isfinite(found.perplexity) and math.isfinite(found.perplexity_of_known)


def test_a_set_without_words_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "data/dev/text", {"u1": ""})
    with pytest.raises(UserError, match="dev"):
        report_perplexity(written(tmp_path, MODEL), tmp_path / "data", ["dev"], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no \\data\\"),
        (MODEL.replace("\\end\\", ""), "cut off"),
        (MODEL.replace("-0.7\tb\t-0.1", "b -0.1 -0.1"), ":10: no 1-gram"),
        (MODEL.replace("-0.7\tb", "nan\tb"), ":10: no 1-gram"),
        (MODEL.replace("-0.6\t</s>\n", ""), "has no </s>"),
        ("iARPA\n" + MODEL, ":1: 'iARPA' begins another format"),
        ("mmap lm http://kheafield.com/code format version 5\n\0", ":1: 'mmap lm http.* begins another format"),
        ("\\data\\\n\\end\\\n", "has no .1-grams:"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arpa(written(tmp_path, text))


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm.gz").write_bytes(gzip.compress(MODEL.encode())[:-12])
    with pytest.raises(UserError, match=r"lm\.gz: cannot be read"):
        Arpa(tmp_path / "lm.gz")
