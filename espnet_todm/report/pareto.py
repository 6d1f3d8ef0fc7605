"""Pictures of what accuracy costs: word error rate against parameters, FLOPs and, on a page, speed and file size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from espnet_todm.report.experiment import Experiment
from espnet_todm.util.files import PathLike
from espnet_todm.util.palette import RULE, STYLES, save_png

AXES = {
    "params": ("params", 1e-6, "Parameters (millions)"),
    "flops": ("flops_per_second", 1e-9, "GFLOPs per second of speech"),
}
"""Name of the picture -> attribute of a size, its unit, label of the axis."""

MORE_AXES = {
    "rtf": ("rtf", 1.0, "Real-time factor, PyTorch"),
    "file": ("file_bytes", 1e-6, "Size of model.safetensors (MB)"),
}
"""Those of a page beside ``AXES``."""

_BESIDE = 5
"""Points between the marks of neighbouring sets."""

_MARGIN = 0.08
"""Of the axis of costs, free at either end. Shifted marks take no part in matplotlib's own choice of limits."""

_CLOSE, _TOUCHING = 0.15, 0.03
"""Of the axis of costs: names of sizes nearer to each other than this are slanted, or joined."""


class Point(NamedTuple):
    """One size on one set: cost in the axis' unit, WER and its 95% interval in percent."""

    size: str
    cost: float
    rate: float
    low: float
    high: float


def plot_experiment(experiment: Experiment, folder: PathLike) -> list[Path]:
    """Write ``<tag>_wer_<axis>.png`` into ``folder`` for each axis with at least two sizes; returns them."""
    written = []
    for name, (series, label) in all_points(experiment, AXES).items():
        figure = draw(series, label, title=experiment.tag)
        written.append(save_png(figure, Path(folder) / f"{experiment.tag}_wer_{name}.png"))
    return written


def all_points(
    experiment: Experiment, axes: Mapping[str, tuple[str, float, str]]
) -> dict[str, tuple[dict[str, list[Point]], str]]:
    """Name of each picture -> points of each set, and the axis' label; without those that have fewer than two costs."""
    found = {}
    for name, (attribute, unit, label) in axes.items():
        series = {split: points(experiment, split, attribute, unit) for split in experiment.splits}
        if len({point.cost for of_split in series.values() for point in of_split}) > 1:
            found[name] = series, label
    return found


def points(experiment: Experiment, split: str, attribute: str, unit: float) -> list[Point]:
    """The sizes that have both a cost and a score on ``split``, the cheapest first."""
    found = []
    for size in experiment.sizes:
        cost, score = getattr(size, attribute), size.scores.get(split)
        if cost is not None and score is not None:
            found.append(Point(size.name, cost * unit, score.total().error_rate, *score.interval()))
    return sorted(found, key=lambda point: (point.cost, point.rate))


def pareto_front(of_split: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is both as cheap and as accurate. The cheapest first."""
    front: list[Point] = []
    for point in sorted(of_split, key=lambda point: (point.cost, point.rate)):
        if not front or point.rate < front[-1].rate:
            front.append(point)
    return front


def draw(
    series: dict[str, list[Point]], label: str, title: str = "", inches: tuple[float, float] = (7.2, 4.6)
) -> Figure:
    """One line per set through its Pareto front; sizes off the front are hollow. Size names stand on top.

    Sets stand a few points beside each other, so that their interval bars do not hide one another.
    """
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    drawn = {split: of_split for split, of_split in series.items() if of_split}
    for index, (split, of_split) in enumerate(drawn.items()):
        aside = _BESIDE * (index - (len(drawn) - 1) / 2) / 72
        place = axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        _draw_set(axes, split, of_split, STYLES[index % len(STYLES)], place)
    _scale_costs(axes, [point.cost for of_split in series.values() for point in of_split], label, int(inches[0]))
    _name_sizes(axes, [point for of_split in series.values() for point in of_split])
    axes.set_ylabel("Word error rate (%)")
    axes.set_ylim(0, 1.05 * max(point.high for of_split in drawn.values() for point in of_split) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    hollow = any(pareto_front(of_split) != of_split for of_split in drawn.values())
    title_of_legend = "set, with 95% interval" + (" (hollow: a cheaper size is as good)" if hollow else "")
    # Below the picture: with many sets there is no place that hides no point.
    figure.legend(
        loc="outside lower center", ncols=min(3, len(drawn)), frameon=False, title=title_of_legend, title_fontsize=9
    )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_set(axes: Axes, split: str, of_split: Sequence[Point], style: tuple[str, str, str], place: Transform) -> None:
    color, marker, line = style
    front = pareto_front(of_split)
    costs, rates = [point.cost for point in front], [point.rate for point in front]
    axes.plot(costs, rates, line + marker, color=color, linewidth=1.5, markersize=6.5, transform=place, label=split)
    for point in of_split:
        axes.errorbar(
            point.cost,
            point.rate,
            yerr=[[point.rate - point.low], [point.high - point.rate]],
            fmt=marker,
            color=color,
            markerfacecolor=color if point in front else "white",
            markersize=6.5,
            capsize=3,
            elinewidth=1.1,
            transform=place,
        )


def _scale_costs(axes: Axes, costs: Sequence[float], label: str, ticks: int) -> None:
    """Limits, and a logarithmic axis with plain numbers once the largest costs four times the smallest.

    ticks: most that a linear axis has.
    """
    low, high = min(costs), max(costs)
    if high >= 4 * low > 0:
        margin = (high / low) ** _MARGIN
        axes.set_xlim(low / margin, high * margin)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = _MARGIN * (high - low or high)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks))
    axes.set_xlabel(label)


def _name_sizes(axes: Axes, found: Sequence[Point]) -> None:
    """A faint upright line at each cost and the size's name on top; names slant where close, join where they touch."""
    costs = dict(sorted(((point.size, point.cost) for point in found), key=lambda pair: pair[1]))
    names: list[str] = []
    places: list[float] = []
    ticks: list[float] = []
    for size, cost in costs.items():
        axes.axvline(cost, color=RULE, linewidth=0.8, zorder=0)
        place = axes.transLimits.transform(axes.transScale.transform((cost, 1.0)))[0]
        if places and place - places[-1] < _TOUCHING:
            names[-1] += f", {size}"
            continue
        names.append(size)
        places.append(place)
        ticks.append(cost)
    top = axes.secondary_xaxis("top")
    top.set_xticks(ticks, labels=names, fontsize=9)
    top.minorticks_off()
    top.tick_params(length=0)
    top.spines["top"].set_visible(False)
    axes.spines["top"].set_visible(False)
    if any(right - left < _CLOSE for left, right in zip(places, places[1:])):
        for text in top.get_xticklabels():
            text.set(rotation=40, horizontalalignment="left", rotation_mode="anchor")
