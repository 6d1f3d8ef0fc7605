"""Report of a search as tables, pictures and JSON, in comparison with random search and uniform scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from espnet_todm.scoring.scores import Score, rate_cell
from espnet_todm.scoring.significance import paired_difference
from espnet_todm.search.evolution import Trial, hypervolume, pareto_front
from espnet_todm.util.files import PathLike, json_rows, write_text
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.palette import RULE, STYLES, save_png

FORMAT = "espnet_todm.search/1"
UNITS = {
    "params": (1e-6, "params (M)"),
    "flops": (1e-9, "GFLOPs per s of speech"),
    "latency": (1e3, "ms per s of speech in the encoder"),
}
SCORE_NAMES = {"wer": "WER (%)", "cer": "CER (%)", "loss": "loss (nats per token)"}
_WORST_SHOWN = 6  # limit of the score axis as a multiple of the best score; very bad subnets would compress the rest


@dataclass(frozen=True)
class SearchReport:
    """The content of a search's report.

    ``methods``: name -> trials, the search itself first. ``best``: budget (in the first criterion) -> method -> trial with
    the best score. ``tests``: (set, budget, method) -> errors of that trial. ``reference``: objective -> worst corner of
    the hypervolume's box.
    """

    settings: Mapping[str, Any]
    split: str
    objectives: Sequence[str]
    score: str
    methods: Mapping[str, Sequence[Trial]]
    best: Mapping[float, Mapping[str, Trial]]
    reference: Mapping[str, float]
    cards: str = "cards"
    tests: Mapping[tuple[str, float, str], Score] = field(default_factory=dict)

    @property
    def criteria(self) -> list[str]:
        return [name for name in self.objectives if name != self.score]

    @property
    def front(self) -> list[Trial]:
        """The Pareto set of the search, in ascending order of the first criterion."""
        trials = pareto_front(next(iter(self.methods.values())), [self.score, *self.criteria])
        return sorted(trials, key=lambda trial: trial.costs[self.criteria[0]])

    def volume(self, method: str) -> float:
        """The hypervolume of a method's trials, as a share of the box."""
        reference = [self.reference[name] for name in self.objectives]
        return hypervolume((trial.values(self.objectives) for trial in self.methods[method]), reference)


def write_report(report: SearchReport, folder: PathLike) -> str:
    """Write search.json, SEARCH.md and its pictures into ``folder``. Returns the text of SEARCH.md."""
    home = Path(folder)
    write_text(home / "search.json", _json(report))
    pictures = []
    for criterion in report.criteria:
        path = home / f"{report.score}_{criterion}.png"
        save_png(draw(report, criterion), path)
        pictures.append(f"![{report.score} against {criterion}]({path.name})\n")
    parts = ["# Search\n", _settings(report), "## Methods\n" + method_table(report), verdict(report)]
    if report.tests:
        parts.append("## The best of each method on sets that were not searched on\n" + test_table(report))
    parts += ["".join(pictures), f"## Pareto set of the search ({len(report.front)} subnets)\n" + front_table(report)]
    text = "\n".join(parts)
    write_text(home / "SEARCH.md", text)
    return text


def method_table(report: SearchReport) -> str:
    """Table of the methods: hypervolume, and best score under each budget."""
    criterion = report.criteria[0]
    header = ["method", "subnets scored", "hypervolume"]
    header += [f"{report.score} {report.split}, {_amount(criterion, budget)}" for budget in report.best]
    rows = []
    for method, trials in report.methods.items():
        scored = len({trial.subnet.components for trial in trials})
        best = [of_budget.get(method) for of_budget in report.best.values()]
        cells = ["" if trial is None else _score(report.score, trial.scores[report.score]) for trial in best]
        rows.append([method, str(scored), f"{report.volume(method):.4f}", *cells])
    corner = ", ".join(_corner(name, value) for name, value in report.reference.items())
    note = f"Hypervolume: share of the box between 0 and {corner} that is dominated.\n"
    return markdown_table(header, rows) + "\n" + note


def verdict(report: SearchReport) -> str:
    """List of the differences between the search and each other method, as Markdown."""
    first, *others = report.methods
    lines = []
    for other in others:
        ours, theirs = report.volume(first), report.volume(other)
        relative = f" ({100 * (ours / theirs - 1):+.1f}%)" if theirs else ""
        wins = losses = 0
        for best in report.best.values():
            if first in best and other in best:
                one, two = best[first].scores[report.score], best[other].scores[report.score]
                wins, losses = wins + (one < two), losses + (one > two)
        lines.append(
            f"- Against {other}: hypervolume {ours:.4f} to {theirs:.4f}{relative}; on {report.split} better under {wins}"
            f" of {len(report.best)} budgets, worse under {losses}.\n"
        )
    return "".join(lines)


def front_table(report: SearchReport) -> str:
    """Table of the search's Pareto set, with links to the cards."""
    criteria = list(report.front[0].costs) if report.front else []
    scores = list(report.front[0].scores) if report.front else []
    header = ["subnet", *(UNITS[name][1] for name in criteria), *(f"{name} {report.split}" for name in scores)]
    rows = [
        [
            f"[{trial.subnet.name}]({report.cards}/{trial.subnet.name}.json)",
            *(f"{trial.costs[name] * UNITS[name][0]:.3f}" for name in criteria),
            *(_score(name, trial.scores[name]) for name in scores),
            trial.by,
        ]
        for trial in report.front
    ]
    return markdown_table([*header, "proposed by"], rows)


def test_table(report: SearchReport) -> str:
    """Table of the WER of each method's best subnet on other sets, and the paired difference from the search's WER."""
    first, criterion = next(iter(report.methods)), report.criteria[0]
    header = ["set", "budget", "method", "subnet", UNITS[criterion][1], "WER [95%]"]
    header += ["WER of search minus this (points) [95%]", "p"]
    rows = []
    for (split, budget, method), score in report.tests.items():
        trial, ours = report.best[budget][method], report.tests.get((split, budget, first))
        difference = ["", ""]
        if ours is not None and method != first:
            found = paired_difference(ours.errors(), score.errors(), score.lengths())
            difference = [f"{found.points:+.1f} [{found.low:+.1f}, {found.high:+.1f}]", f"{found.p_value:.3f}"]
        cost = f"{trial.costs[criterion] * UNITS[criterion][0]:.3f}"
        rows.append([split, _amount(criterion, budget), method, trial.subnet.name, cost, rate_cell(score), *difference])
    return markdown_table(header, rows)


def draw(report: SearchReport, criterion: str) -> Figure:
    """Plot the score against a cost: each scored subnet as a dot, and the Pareto set of each method as a step line."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    factor, label = UNITS[criterion]
    shown = [(method, trials) for method, trials in report.methods.items() if trials]
    for (method, trials), style in zip(shown, STYLES):
        _draw_method(axes, report.score, criterion, factor, method, trials, style)
    scores = [trial.scores[report.score] for _, trials in shown for trial in trials]
    limits = (1.1 * max(scores), _WORST_SHOWN * min(scores), report.reference[report.score])
    axes.set_ylim(0, min(limit for limit in limits if limit > 0))
    axes.set_xlabel(label[0].upper() + label[1:])
    axes.set_ylabel(f"{SCORE_NAMES[report.score]}, {report.split}")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(loc="upper right", framealpha=0.9, edgecolor=RULE)  # fronts fall to the right
    return figure


def _draw_method(
    axes: Axes,
    score: str,
    criterion: str,
    factor: float,
    method: str,
    trials: Sequence[Trial],
    style: tuple[str, str, str],
) -> None:
    """Plot the subnets and the Pareto set of one method."""
    color, marker, line = style
    front = sorted(pareto_front(trials, [score, criterion]), key=lambda trial: trial.costs[criterion])
    costs, scores = ([t.costs[criterion] * factor for t in trials], [t.scores[score] for t in trials])
    axes.plot(costs, scores, marker, color=color, markersize=3, alpha=0.35, linestyle="none")
    steps = [t.costs[criterion] * factor for t in front], [t.scores[score] for t in front]
    look: dict[str, Any] = {"linestyle": line, "marker": marker, "color": color, "markersize": 4.5, "linewidth": 1.4}
    axes.plot(*steps, drawstyle="steps-post", label=method, **look)


def _settings(report: SearchReport) -> str:
    return "".join(f"- {key}: `{value}`\n" for key, value in report.settings.items())


def _json(report: SearchReport) -> str:
    """The report as JSON with one line per trial, so that diffs between files are readable."""
    head = {
        "format": FORMAT,
        "settings": report.settings,
        "set": report.split,
        "objectives": list(report.objectives),
        "reference": dict(report.reference),
        "hypervolume": {method: report.volume(method) for method in report.methods},
        "pareto": [trial.subnet.name for trial in report.front],
        "methods": {method: [_row(trial) for trial in trials] for method, trials in report.methods.items()},
    }
    return json_rows(head, depth=3) + "\n"


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.subnet.name,
        "proposed_by": trial.by,
        "scores": dict(trial.scores),
        "costs": dict(trial.costs),
        "seconds": round(trial.seconds, 3),
        "kept": trial.subnet.to_json(),
    }


def _amount(criterion: str, budget: float) -> str:
    """A budget as text with its unit."""
    factor, label = UNITS[criterion]
    return f"{label} ≤ {budget * factor:.3g}"


def _corner(name: str, value: float) -> str:
    factor, label = UNITS.get(name, (1.0, name))
    return f"{label} {value * factor:.4g}"


def _score(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else f"{value:.1f}"
