"""The prefix beam search of CTC, against the enumeration of all alignments."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flashlight.lib.text.decoder")

from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.prefix_search import PrefixSearch, read_prior
from espnet_todm.errors import UserError
from espnet_todm.lm.ngram import estimate, write_arpa
from espnet_todm.util.files import write_json

BLANK, SILENT = 0, (4,)
CHARS = ["<blank>", "A", "B", "<space>", "<sos/eos>"]
PIECES = ["<blank>", "▁A", "B", "▁", "<sos/eos>"]
EVERYTHING = {"kind": "prefix", "beam_size": 100000, "beam_threshold": 1e8}


def search(tokens: list[str] = CHARS, **options: object) -> PrefixSearch:
    return PrefixSearch(tokens, BLANK, SILENT, SearchOptions(**{**EVERYTHING, **options}))


def posteriors(seed: int, frames: int, tokens: int = 5, scale: float = 1.0) -> np.ndarray:
    """(T, V) log posteriors."""
    scores = scale * np.random.default_rng(seed).normal(size=(frames, tokens))
    return (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)).astype(np.float32)


def enumerate_labels(log_posteriors: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log probability of every label sequence: the sum over all its alignments."""
    sums: dict[tuple[int, ...], float] = {}
    for path in product(range(log_posteriors.shape[1]), repeat=len(log_posteriors)):
        labels = tuple(label for label, _ in groupby(path) if label != BLANK)
        score = float(sum(log_posteriors[t, label] for t, label in enumerate(path)))
        sums[labels] = float(np.logaddexp(sums.get(labels, -np.inf), score))
    return sums


@given(seed=st.integers(0, 10**6), frames=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_beam_that_keeps_all_finds_the_sums_over_all_alignments(seed: int, frames: int) -> None:
    rows = posteriors(seed, frames)
    expected = enumerate_labels(rows)
    found = search().hypotheses(rows)
    assert {tuple(labels) for labels, _ in found} == set(expected) and len(found) == len(expected)
    assert [score for _, score in found] == pytest.approx([expected[tuple(labels)] for labels, _ in found], abs=1e-4)
    assert tuple(search()(rows)) == max(expected, key=lambda labels: expected[labels])


def text_of(labels: tuple[int, ...], tokens: list[str]) -> str:
    text = "".join(tokens[label] for label in labels)
    return " ".join(text.replace("<space>", " ").replace("▁", " ").split())


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has heard "B A" often and other words of A and B too."""
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(estimate(["B A", "B A B A", "AB A", "B A AB"], 2), path)
    return path


@pytest.mark.parametrize("tokens", [CHARS, PIECES])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_words_weigh_as_the_language_model_says(arpa: Path, tokens: list[str], seed: int) -> None:
    from espnet_todm.lm.arpa import Arpa

    rows, model = posteriors(seed, 4), Arpa(arpa)
    found = search(tokens, lm=str(arpa), lm_weight=0.7, word_score=0.3).hypotheses(rows)
    expected = {}
    for labels, score in enumerate_labels(rows).items():
        words = text_of(labels, tokens).split()
        if not set(labels) & set(SILENT):
            expected[labels] = score + 0.7 * np.log(10) * sum(model.score(words)) + 0.3 * len(words)
    allowed = {tuple(labels): score for labels, score in found if not set(labels) & set(SILENT)}
    assert allowed.keys() == expected.keys()
    assert [allowed[labels] for labels in expected] == pytest.approx(list(expected.values()), abs=1e-3)
    assert not set(found[0][0]) & set(SILENT)


@pytest.mark.parametrize(
    ("tokens", "lines"), [(CHARS, ["AB A B", "B B"]), (PIECES, ["AB ▁A B", "B ▁ B"])], ids=["char", "pieces"]
)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_a_lexicon_lets_nothing_else_be_written(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str], lines: list[str], seed: int
) -> None:
    lexicon = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
    lexicon.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    rows = posteriors(seed, 5)
    best = tuple(search(tokens, lexicon=str(lexicon))(rows))
    narrow = search(tokens, lexicon=str(lexicon), beam_size=1)(posteriors(seed, 9))
    assert set(text_of(tuple(narrow), tokens).split()) <= {"AB", "B"} and not set(narrow) & set(SILENT)
    sums = enumerate_labels(rows)
    allowed = [
        labels
        for labels in sums
        if not set(labels) & set(SILENT)
        and set(text_of(labels, tokens).split()) <= {"AB", "B"}
        and (tokens is CHARS or 2 not in labels or all(labels[i - 1] in (1, 3) for i, x in enumerate(labels) if x == 2))
        and (tokens is CHARS or all(labels[i : i + 2] in ((1, 2), (3, 2)) for i, x in enumerate(labels) if x != 2))
    ]
    assert best == max(allowed, key=lambda labels: sums[labels])


@given(seed=st.integers(0, 10**6), frames=st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_a_beam_of_one_is_greedy_where_the_model_is_sure(seed: int, frames: int) -> None:
    rows = posteriors(seed, frames, scale=0.5)
    rows[np.arange(frames), np.random.default_rng(seed).integers(0, 5, frames)] += 12
    greedy = [label for label, _ in groupby(rows.argmax(1).tolist()) if label != BLANK]
    assert search(beam_size=1)(rows) == greedy


def test_the_language_model_chooses_between_words_that_sound_alike(tmp_path: Path) -> None:
    tokens = ["<blank>", "<unk>", "T", "O", "W", "<space>", "E", "N", "<sos/eos>"]
    write_arpa(estimate(["TEN TO TWO", "TEN TO TEN", "ONE TO TWO"], 3), tmp_path / "lm.arpa")
    spoken = ["T", "E", "N", "<space>", "T", "W", "O"]
    rows = np.full((len(spoken), len(tokens)), 0.001, dtype=np.float32)
    rows[np.arange(len(spoken)), [tokens.index(token) for token in spoken]] = 1
    rows[5, tokens.index("W")], rows[5, BLANK] = 0.6, 0.5  # TWO is a little likelier than TO
    rows = np.log(rows / rows.sum(1, keepdims=True))

    def heard(**options: object) -> str:
        labels = PrefixSearch(tokens, BLANK, (8,), SearchOptions(kind="prefix", beam_size=8, **options))(rows)
        return text_of(tuple(labels), tokens)

    assert heard() == "TEN TWO"
    assert heard(lm=str(tmp_path / "lm.arpa"), lm_weight=0.0) == "TEN TWO"
    assert heard(lm=str(tmp_path / "lm.arpa"), lm_weight=0.5) == "TEN TO"


def test_the_prior_is_taken_off(tmp_path: Path) -> None:
    write_json(tmp_path / "prior.json", {"log_prior": [-0.1, -5.0, -5.0, -5.0, -5.0]})
    rows = np.log(np.array([[0.6, 0.3, 0.04, 0.03, 0.03]], dtype=np.float32))
    assert search()(rows) == []
    assert search(prior_weight=0.5, prior=str(tmp_path / "prior.json"))(rows) == [1]
    assert read_prior(tmp_path / "prior.json", 5).tolist() == pytest.approx([-0.1, -5, -5, -5, -5])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("AB A B\nAC A C\n", "lexicon.txt:2: token 'C' of 'AC' is not in the model's token list"),
        ("AB A\n", "lexicon.txt:1: the tokens make 'A', not 'AB'"),
        ("", "no words in it"),
    ],
)
def test_a_wrong_lexicon_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "lexicon.txt").write_text(content)
    with pytest.raises(UserError, match=words):
        search(lexicon=str(tmp_path / "lexicon.txt"))


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lm: .*none.arpa: no such file"):
        search(lm=str(tmp_path / "none.arpa"))
    with pytest.raises(UserError, match=r"lexicon: .*none.txt: no such file"):
        search(lexicon=str(tmp_path / "none.txt"))
    write_arpa(estimate(["A B"], 1), tmp_path / "words.arpa")
    (tmp_path / "text.arpa").write_text("A B\n")
    for name, words in (("words", "KenLM cannot read it .*at least a bigram"), ("text", r"has no \\data")):
        with pytest.raises(UserError, match=rf"lm: .*{name}.arpa.*{words}"):
            search(lm=str(tmp_path / f"{name}.arpa"))
    write_json(tmp_path / "prior.json", {"log_prior": [0.0]})
    with pytest.raises(UserError, match=r"prior: .*the model's 5 tokens"):
        search(prior_weight=0.1, prior=str(tmp_path / "prior.json"))
    with pytest.raises(UserError, match=r"prior_weight: 0\.1 needs the file"):
        search(prior_weight=0.1)
    with pytest.raises(UserError, match="needs search: prefix, but search is greedy"):
        SearchOptions(lm="lm.arpa")
