"""The gap between sizes and their twins over the length of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.curve import curve_section, curve_table, draw_gaps, order_table
from espnet_todm.report.comparison.page import write_comparison
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.results import Results
from espnet_todm.report.comparison.trained import Trained, from_experiment
from tests.report.comparison.conftest import a_method, write_rates

TWINS = {"full": "alone full", "small": "alone small"}
OURS = {1: {"full": 32, "small": 30}, 2: {"full": 24, "small": 22}, 4: {"full": 14, "small": 18}}
ALONE = {1: {"full": 30, "small": 20}, 2: {"full": 20, "small": 18}, 4: {"full": 12, "small": 16}}


@pytest.fixture
def trained(tmp_path: Path) -> tuple[list[Method], list[Trained]]:
    """Three lengths; the longest lacks the small size's twin."""
    done, missing = [], []
    for length in OURS:
        ours = a_method("ours", length=length, twins=TWINS)
        done.append(from_experiment(ours, write_rates(tmp_path / "exp" / ours.slug, OURS[length])))
        for size, rate in ALONE[length].items():
            twin = a_method(f"alone {size}", length=length, sizes=(size,))
            if (length, size) == (4, "small"):
                missing.append(twin)
            else:
                done.append(from_experiment(twin, write_rates(tmp_path / "exp" / twin.slug, {size: rate})))
    return [*(one.method for one in done), *missing], done


def test_the_gap_at_each_length(trained: tuple[list[Method], list[Trained]]) -> None:
    table = curve_table(Results(*trained), "test")
    assert table.header == ["size", "method", "1x", "2x", "4x"]
    (_, _, *full), (_, _, *small) = table.rows
    assert [cell.split()[0] for cell in full] == ["+2.0", "+4.0", "+2.0"]
    assert [cell.split(" ")[0] for cell in small] == ["+10.0", "+4.0", ""]


def test_whether_the_twins_are_in_order_of_size(trained: tuple[list[Method], list[Trained]]) -> None:
    rows = order_table(Results(*trained), "test").rows
    assert rows[0] == ["1x", "ours", "full 30.0, small 20.0", "no: small is better than full"]
    assert [row[0] for row in rows] == ["1x", "2x"]  # at 4x a twin is missing


def test_the_section_has_a_plot_and_is_left_out_for_one_length(
    trained: tuple[list[Method], list[Trained]], tmp_path: Path
) -> None:
    text = curve_section(Results(*trained), tmp_path / "COMPARISON", tmp_path)
    assert "](COMPARISON/gap_test.png)" in text
    assert (tmp_path / "COMPARISON" / "gap_test.png").read_bytes().startswith(b"\x89PNG")
    chosen = [method for method in trained[0] if method.length == 1]
    done = [one for one in trained[1] if one.method.length == 1]
    assert curve_section(Results(chosen, done), tmp_path / "COMPARISON", tmp_path) == ""


def test_all_marks_are_inside_the_plot(trained: tuple[list[Method], list[Trained]]) -> None:
    figure = draw_gaps(Results(*trained), "test")
    figure.canvas.draw()
    full, small = (panel for panel in figure.axes if panel.get_title() in ("full", "small"))
    for panel, points in ((full, (2, 4)), (small, (4, 10))):
        low, high = panel.get_ylim()
        assert low < min(points) and max(points) < high
        assert panel.get_xlim()[0] < 1 and panel.get_xlim()[1] > 4


def test_a_partly_finished_comparison_is_reported(trained: tuple[list[Method], list[Trained]], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("base: base.yaml\n")
    chosen, done = trained
    text = write_comparison(chosen, done, tmp_path / "COMPARISON.md", "toy data", plan)
    assert (tmp_path / "COMPARISON.md").read_text() == text
    assert "1 of 9 trainings are not done yet." in text
    assert "|small|alone small, 4x|0 of 1||" in text
    assert "## Sizes against the same sizes trained alone" in text and "## Over the length of training" in text
    assert "- Data: toy data" in text and "base: base.yaml" in text
    with pytest.raises(UserError, match="nothing to report"):
        write_comparison(chosen, [], tmp_path / "COMPARISON.md", "toy data", plan)
