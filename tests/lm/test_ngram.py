"""n-grams: sums to one, agreement with KenLM, and what the words of a language model become."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import Arpa, measure_perplexity, read_vocabulary
from espnet_todm.lm.ngram import BEGIN, END, estimate, make_ngram, write_arpa
from espnet_todm.util.vocabulary import UNKNOWN


def zipf(sentences: int, words: int = 30, seed: int = 0) -> list[str]:
    """Random sentences with the word frequencies of a language."""
    drawn = random.Random(seed)
    names = [f"w{number}" for number in range(words)]
    weights = [1 / (number + 1) for number in range(words)]
    return [" ".join(drawn.choices(names, weights, k=drawn.randint(1, 9))) for _ in range(sentences)]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(estimate(zipf(300), 4, min_count=2), path)
    return path


@given(
    text=st.lists(st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=6), min_size=1, max_size=8),
    order=st.integers(1, 5),
    min_count=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_after_any_history_probabilities_sum_to_one(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], order: int, min_count: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.arpa"
    write_arpa(estimate([" ".join(words) for words in text], order, min_count), path)
    model = Arpa(path)
    history = data.draw(st.lists(st.sampled_from("ABCDEX"), max_size=5))
    predicted = [END, UNKNOWN, *read_vocabulary(path)]
    sums = sum(10 ** model.score([*history, word])[len(history)] for word in predicted if word != END)
    assert sums + 10 ** model.score(history)[-1] == pytest.approx(1, abs=1e-4)


def test_a_bigram_by_hand(tmp_path: Path) -> None:
    """Chen and Goodman's formula, written out."""
    write_arpa(estimate(["A B", "A B", "A C"], 2), tmp_path / "lm.arpa")
    model = Arpa(tmp_path / "lm.arpa")
    # Words by how many stand before them: A 1, B 1, C 1, </s> 2: too few, so discounts fall back to 0.5 and 1.
    uniform = (3 * 0.5 + 1.0) / 5 / 5  # <unk> </s> A B C
    unigram = (1 - 0.5) / 5 + uniform
    # Pairs: <s> A 3, A B 2, B </s> 2, A C 1, C </s> 1: n1 = n2 = 2, n3 = 1, n4 = 0.
    share = 2 / (2 + 2 * 2)
    one, two, more = 1 - 2 * share * 2 / 2, 2 - 3 * share * 1 / 2, 3 - 4 * share * 0
    assert 10 ** model.score(["A", "B"])[1] == pytest.approx((2 - two) / 3 + (one + two) / 3 * unigram, abs=1e-5)
    assert 10 ** model.score(["Q"])[0] == pytest.approx(more / 3 * uniform, abs=1e-5)


def test_discounts_are_those_of_the_counts_of_counts() -> None:
    model = estimate(zipf(300), 2)
    counts = model.grams[1].counts
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    share = n1 / (n1 + 2 * n2)
    kept = [1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3]
    begin = model.vocabulary.index(BEGIN)
    ours = model.grams[1].counts[model.grams[1].histories == begin]
    freed = sum(kept[min(count, 3) - 1] for count in ours.tolist()) / ours.sum()
    assert 10 ** model.grams[0].log_backoffs[begin] == pytest.approx(freed)


def test_kenlm_reads_the_same_scores(arpa: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from espnet_todm.decode.word_model import WordModel

    kenlm, ours = WordModel(["<blank>", "a"], (), str(arpa)), Arpa(arpa)
    for sentence in [*zipf(20, seed=1), "w1 never w2 w3 w4 heard", "heard"]:
        state, scores = kenlm.start(), []
        for word in sentence.split():
            state, score = kenlm.score(state, word)
            scores.append(score)
        scores.append(kenlm.finish(state))
        assert ours.score(sentence.split()) == pytest.approx(np.array(scores) / math.log(10), abs=1e-5)


def test_perplexity_of_held_out_text_falls_with_the_order_and_counts_unknown_words(arpa: Path, tmp_path: Path) -> None:
    def follow(sentences: int, seed: int) -> list[str]:  # each word is followed by one of two
        drawn = random.Random(seed)
        text = []
        for _ in range(sentences):
            words = [drawn.randrange(20)]
            while len(words) < 8:
                words.append((3 * words[-1] + drawn.randrange(2)) % 20)
            text.append(" ".join(f"w{word}" for word in words))
        return text

    found = []
    for order in (1, 2):
        write_arpa(estimate(follow(300, 0), order), tmp_path / "lm.arpa")
        found.append(measure_perplexity(tmp_path / "lm.arpa", follow(50, 1)).perplexity)
    assert 15 < found[0] < 25 and 2 < found[1] < 4  # 20 words and an end; 20 beginnings, then 2 words, then an end
    one = measure_perplexity(arpa, ["w1 never w2", "", "never"])
    assert (one.sentences, one.words, one.unknown) == (2, 4, 2) and one.unknown_log_prob < 0
    assert one.perplexity == pytest.approx(
        10 ** (-sum(map(sum, map(Arpa(arpa).score, [["w1", "Z", "w2"], ["Z"]]))) / 6)
    )


def test_only_what_the_text_needs_is_kept(arpa: Path) -> None:
    sentences = [line.split() for line in ("w1 w2 w0 zz w3", "w5")]
    few, all_of_it = Arpa(arpa, sentences), Arpa(arpa)
    assert len(few.entries) < len(all_of_it.entries) / 10
    assert [few.score(words) for words in sentences] == [all_of_it.score(words) for words in sentences]


def test_rare_words_become_unknown() -> None:
    assert estimate(["A A B", "A C"], 2, min_count=2).vocabulary == (UNKNOWN, BEGIN, END, "A")


def test_gzipped_models_are_read(arpa: Path, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress(arpa.read_bytes()))
    assert read_vocabulary(tmp_path / "lm.arpa.gz") == read_vocabulary(arpa)


@pytest.mark.parametrize(
    ("text", "order", "words"),
    [
        ([], 3, "no words"),
        (["", " "], 3, "no words"),
        (["A <s> B"], 3, "<s>"),
        (["A"], 0, "lm_order"),
        (["A"], 6, "lm_order"),
    ],
)
def test_what_cannot_be_estimated(text: list[str], order: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        estimate(text, order)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "x" + text, r"has no \\data"),
        (lambda text: text[:-6], "cut off"),
        (lambda text: text.replace("\t</s>", "\t</s>\tone two"), r":\d+: no 1-gram"),
    ],
)
def test_files_that_are_no_models(arpa: Path, tmp_path: Path, change, words: str) -> None:
    (tmp_path / "lm.arpa").write_text(change(arpa.read_text()))
    with pytest.raises(UserError, match=words):
        Arpa(tmp_path / "lm.arpa")
    with pytest.raises(UserError, match="no such file"):
        Arpa(tmp_path / "none.arpa")
    with pytest.raises(UserError, match="run the stage before"):
        make_ngram(tmp_path / "none", tmp_path / "out", 3, 1)
