"""Words from phonemes, against the enumeration of all alignments."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flashlight.lib.text.decoder")

from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.pronunciation_search import PronunciationSearch
from espnet_todm.decode.searches import make_beam, read_words
from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import Arpa
from espnet_todm.lm.ngram import estimate, write_arpa
from espnet_todm.util.files import write_json

TOKENS = ["<blank>", "<unk>", "T", "UW", "UW#", "T#", "<sos/eos>"]
SILENT = (1, 6)
LEXICON = {"TO": "T UW#", "TWO": "T UW#", "TOOT": "T UW T#", "TUTU": "T UW T UW#"}
WIDE = {"kind": "prefix", "beam_size": 100000, "beam_threshold": 1e8}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A lexicon, and a model that has heard TO often, and TWO before TUTU."""
    folder = tmp_path_factory.mktemp("lm")
    (folder / "lexicon.txt").write_text("".join(f"{word} {spelled}\n" for word, spelled in LEXICON.items()))
    write_arpa(estimate(["TO TOOT", "TO TO", "TO TOOT TO", "TWO TUTU", "TO TWO TUTU"], 2), folder / "lm.arpa")
    return {"lm": str(folder / "lm.arpa"), "lexicon": str(folder / "lexicon.txt")}


def posteriors(seed: int, frames: int) -> np.ndarray:
    """(T, V) log posteriors in which <unk> and <sos/eos> are out of reach, as in those of a decoder."""
    scores = np.random.default_rng(seed).normal(size=(frames, len(TOKENS)))
    scores[:, SILENT] = -1e4
    return (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)).astype(np.float32)


def sentences(runs: tuple[tuple[str, int], ...]) -> list[tuple[str, ...]]:
    """All sentences that the labels of an alignment spell. A word's last phoneme may stand there again after blanks, in one
    frame.
    """
    if not runs:
        return [()]
    found = []
    for word, spelled in LEXICON.items():
        phonemes = spelled.split()
        for variant in (phonemes, [*phonemes, phonemes[-1]]):
            end = len(variant)
            if [label for label, _ in runs[:end]] == variant and (variant == phonemes or runs[end - 1][1] == 1):
                found += [(word, *rest) for rest in sentences(runs[end:])]
    return found


def enumerate_sentences(rows: np.ndarray) -> dict[str, float]:
    """Log probability of every sentence: the sum over all its alignments."""
    sums: dict[str, float] = {}
    spoken = [number for number in range(len(TOKENS)) if number not in SILENT]
    for path in product(spoken, repeat=len(rows)):
        runs = tuple((TOKENS[label], len(list(run))) for label, run in groupby(path) if label)
        score = float(sum(rows[t, label] for t, label in enumerate(path)))
        for words in sentences(runs):
            text = " ".join(words)
            sums[text] = float(np.logaddexp(sums.get(text, -np.inf), score))
    return sums


@given(seed=st.integers(0, 10**6), frames=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_a_beam_that_keeps_all_adds_all_alignments_and_the_language_model(
    files: dict[str, str], seed: int, frames: int
) -> None:
    rows, model = posteriors(seed, frames), Arpa(files["lm"])
    options = SearchOptions(**WIDE, **files, lm_weight=0.7, word_score=0.3)
    search = make_beam(TOKENS, 0, SILENT, options)
    assert isinstance(search, PronunciationSearch)
    expected = {
        text: score + 0.7 * np.log(10) * sum(model.score(text.split())) + 0.3 * len(text.split())
        for text, score in enumerate_sentences(rows).items()
    }
    found = dict(search.hypotheses(rows))
    assert found.keys() == expected.keys()
    assert [found[text] for text in expected] == pytest.approx(list(expected.values()), abs=1e-3)
    assert search(rows) == max(expected, key=lambda text: expected[text])


def test_the_language_model_chooses_between_words_that_sound_alike(files: dict[str, str]) -> None:
    spoken = ["T", "UW#", "UW#", "<blank>", "T", "UW", "T", "UW#"]
    rows = np.full((len(spoken), len(TOKENS)), -20.0, dtype=np.float32)
    rows[np.arange(len(spoken)), [TOKENS.index(token) for token in spoken]] = 0
    options = SearchOptions("prefix", **files)
    words = read_words(TOKENS, SILENT, options)
    assert make_beam(TOKENS, 0, SILENT, options, words)(rows) == "TWO TUTU"
    assert make_beam(TOKENS, 0, SILENT, options, words)(rows[:3]) == "TO"
    assert make_beam(TOKENS, 0, SILENT, options, words)(rows[:6]) == "TO"  # a word that has not ended is left out
    assert make_beam(TOKENS, 0, SILENT, options, words)(rows[:0]) == ""
    without = SearchOptions("prefix", lexicon=files["lexicon"])
    assert make_beam(TOKENS, 0, SILENT, without)(rows) in ("TO TUTU", "TWO TUTU")


def test_the_prior_is_taken_off(files: dict[str, str], tmp_path: Path) -> None:
    rows = np.log(np.array([[0.5, 0.001, 0.4, 0.05, 0.01, 0.01, 0.001], [0.5, 0.001, 0.03, 0.05, 0.4, 0.01, 0.001]]))
    rows = rows.astype(np.float32)
    rows[:, SILENT] = -1e4
    write_json(tmp_path / "prior.json", {"log_prior": [-0.1, -9, -2, -2, -2, -2, -9]})
    plain = SearchOptions("prefix", **files, lm_weight=0.0)
    assert make_beam(TOKENS, 0, SILENT, plain)(rows) == ""
    prior = SearchOptions("prefix", **files, lm_weight=0.0, prior_weight=0.5, prior=str(tmp_path / "prior.json"))
    assert make_beam(TOKENS, 0, SILENT, prior)(rows) in ("TO", "TWO")


def test_unusable_files_and_lists(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("TO T UW#\nTOT T# UW#\n")
    options = SearchOptions("prefix", lexicon=str(tmp_path / "lexicon.txt"))
    with pytest.raises(UserError, match=r"lexicon.txt:2: 'T# UW#' must have the mark # at its last phoneme"):
        make_beam(TOKENS, 0, SILENT, options)
    with pytest.raises(UserError, match="needs <unk> or <sos/eos> in its token list"):
        make_beam(TOKENS, 0, (), SearchOptions("prefix", **files))
