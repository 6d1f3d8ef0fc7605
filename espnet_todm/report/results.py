"""RESULTS.md: everything measured in one or more experiments, written from their files and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.report.advice import advice_lines
from espnet_todm.report.environment import Environment
from espnet_todm.report.experiment import Experiment, load_experiment
from espnet_todm.report.facts import cost_lines, fact_lines, speed_lines
from espnet_todm.report.page import write_page
from espnet_todm.report.pareto import plot_experiment
from espnet_todm.report.selection_page import selection_section
from espnet_todm.report.tables import difference_table, error_table, size_table
from espnet_todm.trainers.selection_log import CARDS
from espnet_todm.util.files import PathLike, write_text
from espnet_todm.util.markdown import link


def write_results(
    experiments: Sequence[PathLike],
    output: PathLike,
    label: str,
    commands: Sequence[str] = (),
    config: Optional[PathLike] = None,
    corpus: Optional[str] = None,
    plots: Optional[PathLike] = None,
) -> str:
    """Draw the plots, write RESULTS.md and, in each experiment's folder, its page; returns the text of RESULTS.md.

    experiments: folders; output: the file; label: what the data are; commands: as typed, quoted in the report.
    config: training config of the first experiment to link, by default its own config.yaml, as for the others; corpus: see
    ``official_size_note``.
    plots: folder for the pictures, by default ``<experiment>/report``. Raises UserError when one was never scored.
    """
    loaded = [load_experiment(folder) for folder in experiments]
    environment = Environment(commands=tuple(commands))  # before the pictures, which may change a checkout
    home = Path(output).resolve().parent
    sections = []
    for experiment in loaded:
        pictures = plot_experiment(experiment, plots or experiment.folder / "report")
        path = Path(config if config and experiment is loaded[0] else experiment.folder / CONFIG)
        links = [link(picture, home) for picture in pictures]
        sections.append(model_section(experiment, label, link(path, home) if path.exists() else None, links, corpus))
        if (experiment.folder / CARDS).is_dir():  # the sizes were learned
            sections.append(selection_section(experiment.folder, plots or experiment.folder / "report", home))
    text = "\n".join(["# RESULTS\n", environment_section(environment), *sections])
    write_text(output, text)
    for experiment in loaded:
        write_page(experiment, label, environment, config if experiment is loaded[0] else None, corpus)
    return text


def environment_section(environment: Environment) -> str:
    """ESPnet's list of versions, with the machine and the commands."""
    lines = [
        "## Environments",
        f"- date: `{environment.date}`",
        f"- python version: `{environment.python}`",
        f"- espnet version: `espnet {environment.espnet}`",
        f"- pytorch version: `pytorch {environment.torch}`",
        f"- espnet_todm version: `{environment.espnet_todm}`",
        f"- CPU: `{environment.cpu}`",
    ]
    if environment.gpu is not None:
        lines.append(f"- GPU: `{environment.gpu}`")
    if environment.sources is None:
        lines.append("- Git hash: not run from a git checkout")
    else:
        state = " with uncommitted changes" if environment.sources.dirty else ""
        lines.append(f"- Git hash: `{environment.sources.commit}`{state}")
        lines.append(f"  - Commit date: `{environment.sources.commit_date}`")
    if environment.commands:
        lines += ["- Commands:", "", "```sh", *environment.commands, "```"]
    return "\n".join(lines) + "\n"


def model_section(
    experiment: Experiment, label: str, config: Optional[str], pictures: Sequence[str], corpus: Optional[str] = None
) -> str:
    """All about one supernet. config, pictures: links relative to the report."""
    facts = [f"- ASR config: [{config}]({config})"] if config else []
    facts.append(f"- Data: {label}")
    facts += [f"- {fact}" for fact in fact_lines(experiment, corpus)]
    scores, cost = experiment.scores(), cost_lines(experiment.training_cost)
    below = [*advice_lines(experiment), *speed_lines(experiment)]
    parts = [
        f"## {experiment.tag}\n" + "\n".join(facts) + "\n",
        "### Sizes\n" + size_table(experiment).markdown() + "".join(f"\n{line}\n" for line in below),
        "### Training cost\n" + "".join(f"- {line}\n" for line in cost) if cost else "",
        "".join(f"![word error rate against cost]({picture})\n" for picture in pictures),
        "### WER\n" + error_table(scores).markdown(),
        "### CER\n" + error_table(scores, "characters").markdown(),
    ]
    differences = difference_table(experiment)
    if differences.rows:
        parts.append("### Differences between sizes (paired bootstrap)\n" + differences.markdown())
    return "\n".join(filter(None, parts))
