from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_text import SLOTS, SPLITS, make_sentence, make_sentences, split_of

SEEDS = st.integers(0, 2**31 - 1)


def test_every_slot_is_defined_and_used():
    used = {name for fillers in SLOTS.values() for filler in fillers for name in re.findall(r"{(\w+)}", filler)}
    assert used | {"assistant", "open"} == set(SLOTS)


def test_numbers_run_from_one_to_ninety_nine():
    assert len(set(SLOTS["number"])) == 99
    assert {"one", "twelve", "fourteen", "forty", "ninety nine"} <= set(SLOTS["number"])


@settings(max_examples=50)
@given(seed=SEEDS, open_share=st.floats(0, 1), vocabulary_share=st.floats(0.01, 1))
def test_a_sentence_is_plain_words(seed, open_share, vocabulary_share):
    sentence = make_sentence(np.random.default_rng(seed), open_share, vocabulary_share)
    assert re.fullmatch(r"[a-z']+( [a-z']+)*", sentence)
    assert split_of(sentence) in SPLITS


@settings(max_examples=10, deadline=None)
@given(seeds=st.tuples(SEEDS, SEEDS, SEEDS), open_share=st.floats(0, 1))
def test_no_sentence_stands_in_two_splits_whatever_the_seeds(seeds, open_share):
    sets = [
        set(make_sentences(split, 60, np.random.default_rng(seed), open_share, 0.2))
        for split, seed in zip(SPLITS, seeds)
    ]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 180


def test_the_shares_of_the_splits_are_as_promised():
    rng = np.random.default_rng(0)
    splits = [split_of(make_sentence(rng, 0.5, 1.0)) for _ in range(4000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([15 / 20, 2 / 20, 3 / 20], abs=0.04)


def test_open_share_chooses_the_kind_of_sentence():
    rng = np.random.default_rng(0)

    def words(open_share: float) -> set[str]:
        return {word for _ in range(2000) for word in make_sentence(rng, open_share, 1.0).split()}

    assistant, open_text = words(0.0), words(1.0)
    assert "alarm" in assistant - open_text
    assert "yesterday" in open_text - assistant
    assert len(assistant) > 300
    assert len(open_text) > 300


def test_a_smaller_vocabulary_has_fewer_words():
    rng = np.random.default_rng(0)
    sizes = [
        len({word for _ in range(3000) for word in make_sentence(rng, 0.5, share).split()}) for share in (0.2, 0.5, 1)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.75 * sizes[2]


def test_a_grammar_too_small_gives_fewer_sentences(monkeypatch):
    monkeypatch.setitem(SLOTS, "assistant", ("dial {digit} {digit}",))
    found = make_sentences("dev", 100, np.random.default_rng(0), 0.0, 1.0)
    assert 0 < len(found) < 30
    assert len(set(found)) == len(found)
