"""The learning curve of a comparison: the gap between sizes and their twins over the length of training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from espnet_todm.report.comparison.results import Gap, Results, Row
from espnet_todm.report.comparison.table import signed_cell
from espnet_todm.util.files import PathLike
from espnet_todm.util.markdown import Table, link
from espnet_todm.util.palette import GROUND, RULE, STYLES, save_png

_BESIDE = 1.06
"""Factor between the places of neighbouring methods on the logarithmic axis."""


def gaps_by_length(results: Results, label: str, size: str, split: str) -> dict[int, Gap]:
    """length -> gap of a method's size to its twin, for the lengths that are done."""
    rows = {length: results.rows.get((label, length)) for length in results.lengths}
    gaps = {length: results.gap(row, (size,), split) for length, row in rows.items() if row and size in row.sizes}
    return {length: gap for length, gap in gaps.items() if gap is not None}


def curve_table(results: Results, split: str) -> Table:
    """The difference to the twin in points, one row for each size and method, one column for each length."""
    rows = []
    for size in results.sizes:
        for label in _labels(results):
            gaps = gaps_by_length(results, label, size, split)
            if gaps:
                cells = [signed_cell(gaps[n].difference.points) if n in gaps else "" for n in results.lengths]
                rows.append([size, label, *cells])
    return Table(["size", "method", *(f"{length}x" for length in results.lengths)], rows)


def order_table(results: Results, split: str) -> Table:
    """Whether the twins of each method are in the order of their size at each length: the larger, the fewer errors."""
    rows, seen = [], set()
    for row in results.rows.values():
        twins = {size: twin for size in row.sizes if (twin := results.twin(row, size)) is not None and twin != row}
        names = tuple(twin.name for twin in twins.values())
        if len(twins) < 2 or names in seen:
            continue
        seen.add(names)
        rates = _rates_by_size(twins, split)
        if len(rates) == len(twins):
            listed = ", ".join(f"{size} {rate:.1f}" for size, _, rate in rates)
            rows.append([f"{row.length}x", row.label, listed, _order(rates)])
    return Table(["length", "twins of", f"WER {split} alone, the largest first", "in order of size"], rows)


def _rates_by_size(twins: dict[str, Row], split: str) -> list[tuple[str, float, float]]:
    """(size, parameters, error rate) of the twins that are done, the largest first."""
    found = []
    for size, twin in twins.items():
        params = twin.cost(size, "params")
        seeds = twin.seeds(size, split)
        if seeds:
            errors, lengths = twin.errors((size,), split, seeds)
            found.append((size, params or 0.0, 100 * float(errors.mean(0).sum() / lengths.sum())))
    return sorted(found, key=lambda one: -one[1])


def _order(rates: Sequence[tuple[str, float, float]]) -> str:
    wrong = [f"{b[0]} is better than {a[0]}" for a, b in zip(rates, rates[1:]) if b[2] < a[2]]
    return "no: " + ", ".join(wrong) if wrong else "yes"


def _labels(results: Results) -> list[str]:
    return list(dict.fromkeys(label for label, _ in results.rows))


def draw_gaps(results: Results, split: str) -> Figure:
    """The difference to the twin in points over the length of training: one panel for each size, one line for each method,
    with 95% intervals."""
    panels = {size: _lines(results, size, split) for size in results.sizes}
    panels = {size: lines for size, lines in panels.items() if lines}
    figure = Figure(figsize=(1.2 + 3.3 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = [label for label in _labels(results) if any(label in lines for lines in panels.values())]
    styles = dict(zip(labels, cycle(STYLES)))
    for panel, (size, lines) in zip(axes, panels.items()):
        panel.axhline(0, color=GROUND["text"][0], linewidth=0.9)
        for label, gaps in lines.items():
            _draw_line(panel, gaps, styles[label], _BESIDE ** (labels.index(label) - (len(labels) - 1) / 2), label)
        _scale(panel, results.lengths)
        panel.set_title(size, fontsize=11)
    axes[0].set_ylabel(f"{split}: WER minus that of the twin (points)")
    handles = {text: handle for panel in axes for handle, text in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)), fontsize=9)
    return figure


def _lines(results: Results, size: str, split: str) -> dict[str, dict[int, Gap]]:
    lines = {label: gaps_by_length(results, label, size, split) for label in _labels(results)}
    return {label: gaps for label, gaps in lines.items() if gaps}


def _draw_line(axes: Axes, gaps: dict[int, Gap], style: tuple[str, str, str], aside: float, label: str) -> None:
    color, marker, line = style
    points = [gap.difference.points for gap in gaps.values()]
    bars = [[one.rate - one.low for one in points], [one.high - one.rate for one in points]]
    axes.errorbar(
        [length * aside for length in gaps],
        [one.rate for one in points],
        yerr=bars,
        fmt=line + marker,
        color=color,
        linewidth=1.4,
        markersize=5.5,
        elinewidth=1.0,
        capsize=3,
        label=label,
    )


def _scale(axes: Axes, lengths: Sequence[int]) -> None:
    """A logarithmic axis of lengths with a tick at each."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("updates, as a multiple of the base's")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def curve_section(results: Results, plots: PathLike, home: PathLike) -> str:
    """Markdown with both tables and the plot of each set; empty unless the plan has several lengths and some gap is done.

    Pictures go to ``plots`` and are linked from ``home``.
    """
    if len(results.lengths) < 2:
        return ""
    parts = []
    for split in results.splits:
        table = curve_table(results, split)
        if not table.rows:
            continue
        picture = save_png(draw_gaps(results, split), Path(plots) / f"gap_{split.replace(' ', '_')}.png", dpi=150)
        order = order_table(results, split)
        parts += [f"### {split}: difference to the size trained alone, in points [95%]", table.markdown()]
        parts += [f"![gap over the length of training]({link(picture, home)})\n"]
        parts += [order.markdown()] if order.rows else []
    return "\n".join(["## Over the length of training", *parts]) if parts else ""
