"""The front's definition, and what the pictures show."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.report.experiment import load_experiment
from espnet_todm.report.pareto import Point, draw, pareto_front, plot_experiment, points

POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12).map(
    lambda pairs: [
        Point(str(i), float(cost), float(rate), rate - 1.0, rate + 1.0) for i, (cost, rate) in enumerate(pairs)
    ]
)


@given(POINTS)
def test_front_beats_all_and_nothing_beats_it(of_split: list[Point]) -> None:
    front = pareto_front(of_split)
    for point in of_split:
        assert any(best.cost <= point.cost and best.rate <= point.rate for best in front)
    for best in front:
        others = [point for point in of_split if (point.cost, point.rate) != (best.cost, best.rate)]
        assert not any(point.cost <= best.cost and point.rate <= best.rate for point in others)
    assert [point.cost for point in front] == sorted({point.cost for point in front})


def test_points_are_in_the_units_of_the_axis(scored: Path) -> None:
    small, full = points(load_experiment(scored), "dev", "params", 1e-6)
    assert (small.size, small.cost, full.size, full.cost) == ("small", 1.25, "full", 4.0)
    assert small.rate == pytest.approx(200 / 7) and small.low <= small.rate <= small.high


def test_pictures_are_written_for_both_costs(scored: Path, tmp_path: Path) -> None:
    written = plot_experiment(load_experiment(scored), tmp_path / "new")
    assert [path.name for path in written] == ["toy_wer_params.png", "toy_wer_flops.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_no_picture_without_two_costs(scored: Path, tmp_path: Path) -> None:
    (scored / "subnets" / "small" / "card.json").unlink()
    assert plot_experiment(load_experiment(scored), tmp_path) == []


@settings(max_examples=15, deadline=None)
@given(POINTS)
def test_all_marks_bars_and_names_lie_inside(of_split: list[Point]) -> None:
    figure = draw({"dev": of_split, "none": [], "test": of_split[:1]}, "Parameters", "title")
    axes = figure.axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= point.cost <= right and point.high <= top for point in of_split) and bottom == 0
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dev", "test"]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0  # hides no mark
    names = [text.get_text() for child in axes.child_axes for text in child.get_xticklabels()]
    assert sorted(", ".join(names).split(", ")) == sorted(point.size for point in of_split)
    assert len(names) == len({point.cost for point in of_split})
