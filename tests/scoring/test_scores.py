"""Scores of tables and experiment folders, their file form, and what users can get wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.bin import score as command
from espnet_todm.errors import UserError
from espnet_todm.scoring.scores import (
    Counts,
    official_size_note,
    read_score,
    score_experiment,
    score_tables,
    write_score,
)
from espnet_todm.util.files import write_table

SENTENCES = st.lists(st.sampled_from(["a", "be", "sea"]), min_size=1, max_size=5).map(" ".join)
TABLES = st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(SENTENCES, SENTENCES), min_size=1)


def test_counts_of_a_small_example() -> None:
    references = {"a": "the cat sat", "b": "on the mat", "c": "yes"}
    hypotheses = {"a": "the cat sat", "b": "in the big mat", "c": ""}
    total = score_tables(references, hypotheses).total()
    assert total == Counts(3, 7, correct=5, substitutions=1, deletions=1, insertions=1, sentence_errors=2)
    assert total.errors == 3
    assert total.error_rate == pytest.approx(300 / 7)
    assert total.sentence_error_rate == pytest.approx(200 / 3)


def test_a_space_is_a_character() -> None:
    score = score_tables({"a": "ab  c"}, {"a": "abc"})
    assert score.total("characters") == Counts(1, 4, 3, 0, 1, 0, 1)


@given(TABLES)
def test_totals_are_sums_and_identical_text_has_no_errors(table: dict[str, tuple[str, str]]) -> None:
    references = {name: pair[0] for name, pair in table.items()}
    hypotheses = {name: pair[1] for name, pair in table.items()}
    score = score_tables(references, hypotheses)
    singles = [score_tables({name: references[name]}, {name: hypotheses[name]}).total() for name in table]
    for unit in ("words", "characters"):
        total = score.total(unit)
        assert total.words == total.correct + total.substitutions + total.deletions
        assert total.errors == score.errors(unit).sum() and total.words == score.lengths(unit).sum()
    assert score.total().errors == sum(single.errors for single in singles)
    assert score.total().sentence_errors == sum(single.sentence_errors for single in singles)
    assert score.total().words == sum(len(text.split()) for text in references.values())
    assert score_tables(references, references).total().error_rate == 0


def test_case_is_looked_at_when_asked_alone() -> None:
    references, hypotheses = {"a": "The Cat sat", "b": "Élan"}, {"a": "the cat SAT", "b": "élan"}
    folded, strict = (score_tables(references, hypotheses, case_sensitive=case).total() for case in (False, True))
    assert (folded.correct, folded.substitutions) == (3, 1)  # É is not folded by sclite either
    assert (strict.correct, strict.substitutions) == (0, 4)
    assert score_tables(references, hypotheses).total("characters").errors == 1


def test_scoring_says_what_case_would_change(
    unscored: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_table(unscored / "data/dev/text", {"a": "One two", "b": "Three"})
    write_table(unscored / "exp/toy/decode/dev/small/text", {"a": "one two", "b": "three"})
    arguments = ["--experiment", str(unscored / "exp/toy"), "--data", str(unscored / "data"), "--sets", "dev"]
    path = unscored / "exp/toy/decode/dev/small/score.json"
    command.main([*arguments, "--sizes", "small"])
    assert "dev/small: case is not looked at, as in sclite without -s; --case_sensitive finds 2 more" in caplog.text
    assert read_score(path).total().errors == 0 and not read_score(path).case_sensitive
    caplog.clear()
    command.main([*arguments, "--sizes", "small", "--case_sensitive"])
    assert read_score(path).total().errors == 2 and read_score(path).case_sensitive and "case" not in caplog.text


def test_missing_hypotheses_count_as_empty(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score = score_tables({"a": "one two", "b": "three"}, {"b": "three"}, "test", "small")
    assert score.missing == 1 and score.total().deletions == 2
    assert "test/small: 1 of 2 utterances" in caplog.text


def test_bad_tables_are_refused() -> None:
    with pytest.raises(UserError, match=r"test/small: hypothesis of utterance 'z' \(1 such\) has no reference"):
        score_tables({"a": "one"}, {"a": "one", "z": "two"}, "test", "small")
    for empty in ({}, {"a": "", "b": " "}):
        with pytest.raises(UserError, match=r"test: the references hold \d utterances and no words"):
            score_tables(empty, {}, "test")


def test_written_and_read_again(tmp_path: Path) -> None:
    score = score_tables({"é 1": "naïve café", "b": "x"}, {"b": "y z"}, "dev", "full")
    path = tmp_path / "score.json"
    write_score(path, score)
    again = read_score(path)
    assert (again.split, again.size, again.utterances, again.missing) == ("dev", "full", ("é 1", "b"), 1)
    assert all((again.edits[unit] == score.edits[unit]).all() for unit in score.edits)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["words"]["error_rate"] == score.total().error_rate
    assert stored["words"]["interval_95"] == list(score.interval())
    assert stored["utterances"]["b"] == {"words": [0, 1, 0, 1], "characters": [0, 1, 0, 2]}


@pytest.mark.parametrize("text", ['{"format": "other/1"}', "[]", "{}", '{"format": "espnet_todm.score/1"}', "{"])
def test_other_files_are_not_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "score.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"score\.json"):
        read_score(path)


def test_experiment_is_scored_where_it_was_decoded(unscored: Path) -> None:
    scores = score_experiment(unscored / "exp/toy", unscored / "data", ["dev", "test_clean"])
    assert [(s.split, s.size) for s in scores] == [
        ("dev", "full"),
        ("dev", "small"),
        ("dev", "uncosted"),
        ("test_clean", "full"),
        ("test_clean", "small"),
    ]
    assert read_score(unscored / "exp/toy/decode/dev/small/score.json").total() == scores[1].total()
    only = score_experiment(unscored / "exp/toy", unscored / "data", ["dev"], ["small"])
    assert [s.size for s in only] == ["small"]


@pytest.mark.parametrize(
    ("splits", "sizes", "words"),
    [
        (["dev"], ["tiny"], "tiny"),
        (["eval"], None, "eval"),
        ([], None, "sets: none was named"),
    ],
)
def test_what_was_not_decoded_is_named(unscored: Path, splits: list[str], sizes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score_experiment(unscored / "exp/toy", unscored / "data", splits, sizes)


def test_set_that_was_never_decoded(unscored: Path) -> None:
    write_table(unscored / "data" / "later" / "text", {"a": "one"})
    with pytest.raises(UserError, match="no <size>/text with hypotheses of set 'later'"):
        score_experiment(unscored / "exp/toy", unscored / "data", ["later"])


def test_official_sets_are_known_by_their_sizes() -> None:
    assert official_size_note(score_tables({"a": "one"}, {"a": "one"}, "dev")) is None
    for split, corpus, words in (
        ("test_clean", None, "2620 and 52576"),
        ("test-other", "librispeech", "2939 and 52343"),
        ("dev", "tedlium2", "466 and 14671"),
    ):
        note = official_size_note(score_tables({"a": "one two"}, {"a": "one"}, split), corpus)
        assert note is not None and words in note and "1 sentences and 2 words" in note
    complete = {str(index): "w" for index in range(1155)}
    complete["0"] = " ".join(["w"] * (27500 - 1154))
    assert official_size_note(score_tables(complete, complete, "test"), "tedlium2") is None
    with pytest.raises(UserError, match="corpus: 'ted' is unknown"):
        official_size_note(score_tables({"a": "one"}, {}, "test"), "ted")


def test_command_prints_the_tables(
    unscored: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command.main(
        ["--experiment", str(unscored / "exp/toy"), "--data", str(unscored / "data"), "--sets", "dev test_clean"]
    )
    printed = capsys.readouterr().out
    assert "### WER" in printed and "### CER" in printed
    assert "|dev/small|2|7|71.4|14.3|14.3|0.0|28.6|100.0|" in printed
    assert caplog.text.count("results cannot be compared with published ones") == 1
