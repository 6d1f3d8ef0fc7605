"""The report of a comparison: tables, curves, and the components that learned methods chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.curve import curve_section
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.results import Results
from espnet_todm.report.comparison.table import gap_section, size_table
from espnet_todm.report.comparison.trained import Trained
from espnet_todm.report.environment import Environment
from espnet_todm.report.results import environment_section
from espnet_todm.report.selection_page import selection_section
from espnet_todm.util.files import PathLike, write_text


def write_comparison(
    chosen: Sequence[Method], done: Sequence[Trained], output: PathLike, label: str, plan: PathLike
) -> str:
    """Write the report, with its environment; returns the text. Rows of methods that are not done have blank cells.

    chosen: methods to show; done: those that are complete. label: what the data are; plan: quoted,
    since it is what was run. Raises UserError when none is done, and when a size and its twin differ in cost.
    """
    if not done:
        raise UserError("nothing to report: none of the plan's trainings is done")
    results = Results(chosen, done)
    results.check_twins()
    home, plots = Path(output).resolve().parent, Path(output).with_suffix("")
    missing = len(chosen) - len(done)
    parts = [
        "# Comparison\n",
        environment_section(Environment(commands=(f"python -m espnet_todm.bin.compare --plan {plan}",))),
        f"- Data: {label}\n- Plan:\n\n```yaml\n{Path(plan).read_text(encoding='utf-8').strip()}\n```\n",
        f"{missing} of {len(chosen)} trainings are not done yet.\n" if missing else "",
        "## Methods and sizes\n" + size_table(results).markdown(),
        gap_section(results),
        curve_section(results, plots, home),
        *_selections(results, plots, home),
    ]
    text = "\n".join(filter(None, parts))
    write_text(output, text)
    return text


def _selections(results: Results, plots: Path, home: Path) -> list[str]:
    """The components of every method that learned them, of its first seed."""
    sections = []
    for row in results.rows.values():
        first = next(iter(row.done.values()), None)
        if first is None or not first.kept:
            continue
        if first.experiment is None:
            told = "Its experiment is not on this machine, so its components are not shown.\n"
        else:
            told = selection_section(first.experiment, plots, home)
        sections.append(f"## {first.method.name}\n{told}")
    return sections
