"""Curves from event files: whose they are, where in an epoch, and how they are drawn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from espnet_todm.report.svg import INCHES, inline_svg, plot_style
from espnet_todm.report.training_curves import (
    Curve,
    agreement_table,
    draw_curves,
    read_curves,
    split_agreement,
    title,
)
from espnet_todm.util.palette import STYLES

tensorboard = pytest.importorskip("torch.utils.tensorboard")


def write(folder: Path, values: dict[str, list[tuple[int, float]]]) -> None:
    with tensorboard.SummaryWriter(str(folder)) as writer:
        for tag, pairs in values.items():
            for step, value in pairs:
                writer.add_scalar(tag, value, step)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Two epochs of 10 and 20 updates; a resumed run makes update 20 again."""
    ends = [(10, 1.0), (30, 2.0)]
    write(
        tmp_path / "tensorboard" / "train",
        {"loss_small": [(5, 9.0), (20, 5.0)], "loss": [(5, 1.0)], "iter_epoch": ends},
    )
    write(
        tmp_path / "tensorboard" / "train", {"loss_small": [(20, 4.0)], "loss_very_small": [(5, math.nan), (30, 3.0)]}
    )
    write(tmp_path / "tensorboard" / "valid", {"cer_ctc_small": [(10, 0.5), (30, 0.25)], "loss_small": [(10, 7.0)]})
    return tmp_path


def test_curves_are_found_size_by_size(trained: Path) -> None:
    curves = read_curves(trained, ["very_small", "small"])
    assert list(curves) == ["cer_ctc", "loss"]
    assert curves["cer_ctc"] == [Curve("small", 1, [], [(1.0, 0.5), (2.0, 0.25)])]
    very_small, small = curves["loss"]
    assert very_small == Curve("very_small", 0, [(2.0, 3.0)], [])
    assert small == Curve("small", 1, [(0.5, 9.0), (1.5, 4.0)], [(1.0, 7.0)])


def test_no_event_files_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path, ["small"]) == {}


def test_without_epochs_updates_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "tensorboard" / "train", {"kd_small": [(5, 2.0), (15, 1.0)]})
    assert read_curves(tmp_path, ["small"]) == {"kd": [Curve("small", 0, [(5.0, 2.0), (15.0, 1.0)], [])]}


def test_means_over_epochs_are_no_part_of_a_curve(tmp_path: Path) -> None:
    """ESPnet writes an epoch's mean under the tag of its updates, at the last of them; epochs of 10 updates here."""
    train = [(5, 9.0), (10, 8.0), (10, 8.5), (15, 7.0), (20, 7.5), (30, 6.5)]
    write(tmp_path / "tensorboard" / "train", {"loss_small": train, "iter_epoch": [(10, 1.0), (20, 2.0), (30, 3.0)]})
    (curve,) = read_curves(tmp_path, ["small"])["loss"]
    assert curve.train == [(0.5, 9.0), (1.0, 8.0), (1.5, 7.0), (3.0, 6.5)]  # the third epoch has its mean alone


def test_a_size_keeps_its_colour_and_rates_are_in_percent() -> None:
    curve = Curve("small", 1, [], [(1.0, 0.5), (2.0, 0.25)])
    figure = draw_curves("cer_ctc", [curve], INCHES)
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == [50.0, 25.0] and line.get_color() == STYLES[1][0]
    assert figure.axes[0].get_yscale() == "linear" and "%" in figure.axes[0].get_ylabel()
    steep = draw_curves("loss", [Curve("small", 0, [(0.1, 100.0), (1.0, 2.0)], [])], INCHES)
    assert steep.axes[0].get_yscale() == "log"
    below = draw_curves("loss", [Curve("small", 0, [(0.1, 100.0), (1.0, -2.0)], [])], INCHES)
    assert below.axes[0].get_ylim()[0] <= -2.0


def test_agreement_is_a_table_by_part_and_one_picture(tmp_path: Path) -> None:
    """Four epochs of 10 updates. A tag without a finite value has no curve."""
    ends = [(10 * epoch, float(epoch)) for epoch in range(1, 5)]
    attention = [(5, 0.5), (10, 0.3), (15, -0.1), (25, math.nan), (35, -0.2), (40, -0.4)]
    values = {"agreement_self_attn_small": attention, "agreement_all_small": [(5, 0.75), (35, 0.25)]}
    values["agreement_first_third_middle"] = [(35, 1.0)]
    values["agreement_output_middle"] = [(35, math.nan)]
    write(tmp_path / "tensorboard" / "train", {**values, "loss_small": [(5, 1.0)], "iter_epoch": ends})
    drawn, parts = split_agreement(read_curves(tmp_path, ["middle", "small"]))
    assert list(drawn) == ["loss", "agreement_all"] and list(parts) == ["all", "first_third", "self_attn"]
    table = agreement_table(parts)
    columns = ("first quarter", "last quarter", "below 0 (%)")
    assert table.header == ["part", *(f"{size}: {column}" for size in ("middle", "small") for column in columns)]
    assert table.rows == [
        ["all", "", "", "", "0.75", "0.25", "0"],
        ["first third", "", "1.00", "0", "", "", ""],
        ["attention", "", "", "", "0.50", "-0.20", "67"],  # updates 10 and 40 are taken for epochs' means
    ]
    assert title("agreement_all") == "gradient agreement (all)"


def test_titles() -> None:
    assert [title(name) for name in ("cer_ctc", "loss", "kd")] == ["CER (CTC)", "loss", "distillation loss"]


def test_inline_pictures_follow_the_theme_and_keep_to_themselves() -> None:
    texts = []
    for name in ("first", "second"):
        with plot_style(name):
            texts.append(inline_svg(draw_curves("loss", [Curve("<s>", 0, [(1.0, 1.0)], [])], INCHES), 'a "b" \\1'))
    for text in texts:
        assert text.startswith('<svg role="img" aria-label="a &quot;b&quot; \\1" viewBox="0 0 ')
        assert "var(--series-1)" in text and "currentColor" in text and "&lt;s&gt;" in text
        assert "<style" not in text and "font-family" not in text and "http" not in text
    ids = [{part.split('"')[0] for part in text.split(' id="')[1:]} for text in texts]
    assert ids[0] and not ids[0] & ids[1]
