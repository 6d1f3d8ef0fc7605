"""The line that says which size to take: the smallest that no set shows to be worse."""

from __future__ import annotations

from pathlib import Path

from espnet_todm.report.advice import MANY_WORDS, advice_lines
from espnet_todm.report.experiment import Experiment, SizeResult
from espnet_todm.scoring.scores import Score, score_tables

SENTENCES = 200


def score(size: str, wrong: int) -> Score:
    """Of sentences of four words, of which the first ``wrong`` have one word wrong."""
    references = {f"u{n:03d}": "one two three four" for n in range(SENTENCES)}
    hypotheses = {name: "one two three" if n < wrong else text for n, (name, text) in enumerate(references.items())}
    return score_tables(references, hypotheses, "test", size)


def experiment(**sizes: tuple[float, int]) -> Experiment:
    """Size -> (parameters, sentences with an error), the largest first."""
    results = [SizeResult(name, params=params, scores={"test": score(name, n)}) for name, (params, n) in sizes.items()]
    return Experiment(Path("exp"), tuple(results), ("test",))


def test_the_smallest_that_is_not_worse_is_named() -> None:
    first, second = advice_lines(experiment(full=(4e6, 40), medium=(2e6, 41), small=(1e6, 90)))
    assert first.startswith("Which size: medium, with 50% fewer parameters")
    assert f"{4 * SENTENCES:,} words" in first and 4 * SENTENCES < MANY_WORDS
    assert "small +6.2 points of WER for 75% fewer parameters" in second


def test_a_size_that_is_better_than_a_larger_one_counts() -> None:
    (line,) = advice_lines(experiment(full=(4e6, 40), medium=(2e6, 90), small=(1e6, 20)))
    assert line.startswith("Which size: small, with 75% fewer")


def test_where_all_are_worse_the_full_one_is_named() -> None:
    first, second = advice_lines(experiment(full=(4e6, 10), small=(1e6, 90)))
    assert first.startswith("Which size: full if it fits") and "small +10.0 points" in second


def test_without_something_to_compare_nothing_is_said() -> None:
    assert advice_lines(experiment(full=(4e6, 10))) == []
    assert advice_lines(Experiment(Path("exp"), (SizeResult("full"), SizeResult("small")), ())) == []
    apart = experiment(full=(4e6, 10), small=(1e6, 10))
    apart.sizes[1].scores["test"] = score_tables({"other": "one two"}, {"other": "one"}, "test", "small")
    assert advice_lines(apart) == []


def test_models_that_have_not_learned_are_not_advised() -> None:
    wrong = {f"u{n}": "one" for n in range(9)}
    hypotheses = dict.fromkeys(wrong, "two")
    sizes = [
        SizeResult(name, params=params, scores={"test": score_tables(wrong, hypotheses, "test", name)})
        for name, params in (("full", 4e6), ("small", 1e6))
    ]
    (line,) = advice_lines(Experiment(Path("exp"), tuple(sizes), ("test",)))
    assert line == "Which size: none yet; with a word error rate of 100% even full has not learned enough."


def test_a_weak_search_of_a_good_model_is_no_reason_not_to_advise() -> None:
    texts = {f"u{n}": "one" for n in range(9)}
    heard = {"test": dict.fromkeys(texts, "two"), "test lm": texts}
    sizes = [
        SizeResult(name, params=params, scores={s: score_tables(texts, heard[s], s, name) for s in heard})
        for name, params in (("full", 4e6), ("small", 1e6))
    ]
    first, *_ = advice_lines(Experiment(Path("exp"), tuple(sizes), tuple(heard)))
    assert first.startswith("Which size: small")


def test_the_search_that_the_largest_is_best_with_decides() -> None:
    """Greedy, with a language model, and phonemes, whose error rate is the lowest of all: words are what a user wants."""
    wrong = {"full": (60, 20, 5), "small": (90, 22, 60)}
    sizes = []
    for name, (greedy, with_lm, phonemes) in wrong.items():
        texts = {f"u{n:03d}": "one two three four five six seven eight" for n in range(SENTENCES)}
        heard = {key: text if n >= phonemes else text[4:] for n, (key, text) in enumerate(texts.items())}
        spelt = score_tables(texts, heard, "test phonemes", name)
        scores = {"test phonemes": spelt, "test": score(name, greedy), "test lm": score(name, with_lm)}
        sizes.append(SizeResult(name, params=4e6 if name == "full" else 1e6, scores=scores))
    (line,) = advice_lines(Experiment(Path("exp"), tuple(sizes), ("test", "test lm", "test phonemes")))
    assert line.startswith("Which size: small, with 75% fewer") and "They have 800 words" in line
