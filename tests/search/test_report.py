"""The report of a search: its tables, its verdict and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espnet_todm.components import Key, Subnet
from espnet_todm.scoring.scores import score_tables
from espnet_todm.search.evolution import Trial
from espnet_todm.search.report import SearchReport, draw, front_table, method_table, test_table, verdict, write_report

test_table.__test__ = False  # pytest takes it for a test by its name


def trial(name: str, wer: float, params: float, key: int) -> Trial:
    costs = {"params": params, "flops": 100 * params}
    return Trial(key, "random", Subnet(name, frozenset({Key(0, "ffn", key)})), {"wer": wer, "cer": wer / 3}, costs, 0.5)


SEARCHED = [trial("trial_0", 10, 2e6, 0), trial("trial_1", 20, 1e6, 1), trial("trial_2", 30, 1.5e6, 2)]
DRAWN = [trial("random_0", 25, 1e6, 3), trial("random_1", 10, 2e6, 4)]


@pytest.fixture
def report() -> SearchReport:
    references = {"a": "ONE TWO", "b": "THREE FOUR"}
    texts = {"search": {"a": "ONE TWO", "b": "THREE FOR"}, "random search": {"a": "WON TWO", "b": "THREE FOR"}}
    tests = {("test", 1.2e6, name): score_tables(references, text, "test", name) for name, text in texts.items()}
    best = {1.2e6: {"search": SEARCHED[1], "random search": DRAWN[0]}, 2e6: {"search": SEARCHED[0]}}
    return SearchReport(
        {"seed": 3},
        "dev",
        ["wer", "params"],
        "wer",
        {"search": SEARCHED, "random search": DRAWN},
        best,
        {"wer": 100.0, "params": 4e6},
        tests=tests,
    )


def test_methods_stand_side_by_side(report: SearchReport) -> None:
    lines = method_table(report).splitlines()
    assert lines[2] == "|search|3|0.6500|20.0|10.0|"  # (4 - 1) / 4 of 0.8, and (4 - 2) / 4 of 0.1 more
    assert lines[3] == "|random search|2|0.6375|25.0||"
    assert "wer 100, params (M) 4 that is dominated" in lines[-1]


def test_the_verdict_counts_budgets_both_ways(report: SearchReport) -> None:
    assert verdict(report) == (
        "- Against random search: hypervolume 0.6500 to 0.6375 (+2.0%); on dev better under 1 of 2 budgets, worse under 0.\n"
    )
    turned = SearchReport(**{**vars(report), "methods": {"random search": DRAWN, "search": SEARCHED}})
    assert "0.6375 to 0.6500 (-1.9%); on dev better under 0 of 2 budgets, worse under 1." in verdict(turned)


def test_only_the_pareto_set_is_listed_with_its_cards(report: SearchReport) -> None:
    lines = front_table(report).splitlines()
    assert lines[2] == "|[trial_1](cards/trial_1.json)|1.000|0.100|20.0|6.7|random|" and len(lines) == 4
    assert lines[3].startswith("|[trial_0](cards/trial_0.json)|2.000|")


def test_other_sets_have_intervals_and_paired_differences(report: SearchReport) -> None:
    search, random = test_table(report).splitlines()[2:]
    assert search.startswith("|test|params (M) ≤ 1.2|search|trial_1|1.000|25.0 [") and search.endswith("|||")
    assert "|random_0|1.000|50.0 [" in random and "|-25.0 [" in random


def test_everything_is_written(report: SearchReport, tmp_path: Path) -> None:
    text = write_report(report, tmp_path)
    assert (
        text == (tmp_path / "SEARCH.md").read_text(encoding="utf-8") and "![wer against params](wer_params.png)" in text
    )
    stored = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))
    assert stored["pareto"] == ["trial_1", "trial_0"] and stored["hypervolume"]["random search"] == pytest.approx(
        0.6375
    )
    row = stored["methods"]["search"][2]
    assert row["name"] == "trial_2" and row["kept"] == {"0": {"ffn": [2]}} and row["costs"]["params"] == 1.5e6
    assert (tmp_path / "wer_params.png").read_bytes().startswith(b"\x89PNG")


def test_scores_that_are_not_finite_are_null(report: SearchReport, tmp_path: Path) -> None:
    report.methods["search"][2].scores["loss"] = float("inf")
    try:
        write_report(report, tmp_path)
    finally:
        del report.methods["search"][2].scores["loss"]
    stored = (tmp_path / "search.json").read_text(encoding="utf-8")
    rows = json.loads(stored, parse_constant=lambda name: pytest.fail(name))["methods"]["search"]
    assert [row["scores"].get("loss", 0) for row in rows] == [0, 0, None]


def test_the_picture_shows_where_it_matters(report: SearchReport) -> None:
    (axes,) = draw(report, "params").axes
    assert axes.get_ylim() == (0, pytest.approx(33))  # 1.1 times the worst, 6 times the best being more
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["search", "random search"]
    steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps[0].get_xdata()) == [1.0, 2.0] and list(steps[0].get_ydata()) == [20, 10]
