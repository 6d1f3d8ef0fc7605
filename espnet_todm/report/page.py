"""One HTML page for an experiment: what its sizes cost and how well they do, with pictures, in one file.

The page asks nothing of any other place: its style sheet and its pictures are inside. Its links lead to files of the
experiment. What was not measured has no section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Optional

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.report.advice import advice_lines
from espnet_todm.report.downloads import downloads, kinds
from espnet_todm.report.environment import Environment
from espnet_todm.report.experiment import Experiment
from espnet_todm.report.facts import cost_lines, fact_lines, speed_lines
from espnet_todm.report.measured import measured_sections
from espnet_todm.report.pareto import AXES, MORE_AXES, all_points, draw
from espnet_todm.report.selection import NAMES, Choice, describe, draw_history
from espnet_todm.report.selection_page import Selection, load_selection
from espnet_todm.report.svg import INCHES, Picture, inline_svg, plot_style
from espnet_todm.report.tables import difference_table, error_table, size_table
from espnet_todm.report.training_curves import (
    Curve,
    agreement_table,
    draw_curves,
    read_curves,
    split_agreement,
    title,
)
from espnet_todm.util.files import PathLike, read_json, write_text
from espnet_todm.util.markdown import Table, link
from espnet_todm.util.palette import variables

PAGE = "report.html"
TEMPLATE = "page.html"


def write_page(
    experiment: Experiment,
    label: str,
    environment: Environment,
    config: Optional[PathLike] = None,
    corpus: Optional[str] = None,
    output: Optional[PathLike] = None,
) -> Path:
    """Write the page, by default ``report.html`` in the experiment's folder; returns its path.

    label: what the data are; config: training configuration to link, by default the experiment's own; corpus: see
    ``official_size_note``. Raises UserError without jinja2, and when a file of the experiment is not what its name says.
    """
    path = Path(output or experiment.folder / PAGE)
    page = _gather(experiment, path.resolve().parent, config, corpus)
    write_text(path, _render({**page, "label": label, "environment": environment}))
    return path


def _gather(
    experiment: Experiment, home: Path, config: Optional[PathLike] = None, corpus: Optional[str] = None
) -> dict[str, Any]:
    """What the template shows of an experiment, by the template's names; home: the folder that its links start from."""
    folder, names = experiment.folder, [size.name for size in experiment.sizes]
    settings = Path(config or folder / CONFIG)
    of_sizes = {name: downloads(folder / "subnets" / name, home) for name in names}
    selection = _selection(folder)
    curves, agreement = split_agreement(read_curves(folder, names))
    return {
        "experiment": experiment,
        "config": link(settings, home) if settings.is_file() else None,
        "facts": fact_lines(experiment, corpus),
        "sizes": _scores_first(size_table(experiment), len(experiment.splits)),
        "kinds": kinds(list(of_sizes.values())),
        "files": of_sizes,
        "speed": speed_lines(experiment),
        "advice": advice_lines(experiment),
        "costs": _cost_pictures(experiment),
        "errors": {unit: error_table(experiment.scores(), unit) for unit in ("words", "characters")},
        "differences": difference_table(experiment),
        "heat_maps": [_heat_map(choice) for choice in selection.chosen] if selection else [],
        "history": _history_pictures(selection) if selection else [],
        "curves": _curve_pictures(curves),
        "agreement": agreement_table(agreement) if agreement else None,
        "training_cost": cost_lines(experiment.training_cost),
        "measured": measured_sections(folder, home),
    }


def _render(page: dict[str, Any]) -> str:
    """The page as HTML. All text in it is escaped; only pictures, which this package draws, are taken as they are."""
    try:
        from jinja2 import Environment as Templates
        from jinja2 import StrictUndefined
    except ImportError:
        raise UserError("the page report.html needs the package jinja2; install it: pip install jinja2") from None
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.tests["measured"] = _is_measured
    source = (files("espnet_todm.report") / TEMPLATE).read_text(encoding="utf-8")
    return templates.from_string(source).render(page=page, variables=variables).strip() + "\n"


def _is_measured(text: str) -> bool:
    """Whether a cell is a number, with a unit or an interval or without, and stands to the right."""
    return re.match(r"\[?[-+]?\d", text) is not None


def _scores_first(table: Table, scores: int) -> Table:
    """The last columns right after the first, so that they are seen on a narrow screen."""
    rows = [[row[0], *row[len(row) - scores :], *row[1 : len(row) - scores]] for row in [table.header, *table.rows]]
    return Table(rows[0], rows[1:])


def _cost_pictures(experiment: Experiment) -> list[Picture]:
    """WER against each cost that at least two sizes have."""
    pictures = []
    for name, (series, label) in all_points(experiment, {**AXES, **MORE_AXES}).items():
        with plot_style(f"cost-{name}"):
            text = f"Word error rate against {label if label[1].isupper() else label[0].lower() + label[1:]}"
            figure = draw(series, label, inches=INCHES)
            pictures.append(Picture(inline_svg(figure, f"{text}; the numbers stand in the table of sizes"), text))
    return pictures


def _curve_pictures(by_measure: Mapping[str, Sequence[Curve]]) -> list[Picture]:
    pictures = []
    for measure, curves in by_measure.items():
        with plot_style(f"curve-{measure}"):
            last = [f"{curve.size} ends at {(curve.valid or curve.train)[-1][1]:.3g}" for curve in curves]
            words = f"{title(measure)} over the training: {', '.join(last)}"
            caption = title(measure)[:1].upper() + title(measure)[1:]
            pictures.append(Picture(inline_svg(draw_curves(measure, curves, INCHES), words), caption))
    return pictures


def _selection(folder: Path) -> Optional[Selection]:
    """What the sizes keep, if any but the full one was extracted with a list of what it keeps."""
    cards = [read_json(path) for path in folder.glob("subnets/*/card.json")]
    smaller = any(isinstance(card, dict) and "kept" in card and card.get("name") != FULL for card in cards)
    return load_selection(folder) if smaller and (folder / CONFIG).is_file() else None


def _heat_map(choice: Choice) -> dict[str, Any]:
    """What one size keeps: kinds of modules, and from the last block to the first its number and its shares in [0, 1]."""
    blocks = list(enumerate(choice.kept.tolist(), 1))[::-1]
    modules = [NAMES.get(name, name) for name in choice.modules]
    return {"choice": choice, "modules": modules, "blocks": blocks, "words": describe(choice)}


def _history_pictures(selection: Selection) -> list[Picture]:
    """The soft weights over the first stage, a picture for each size."""
    pictures = []
    for size in dict.fromkeys(size for weights in selection.history.values() for size in weights):
        of_size = {step: {size: weights[size]} for step, weights in selection.history.items() if size in weights}
        words = f"Mean soft weight that {size} gives each kind of module over the first stage"
        with plot_style(f"history-{size}"):
            pictures.append(Picture(inline_svg(draw_history(of_size, selection.units), words), words))
    return pictures
