"""RESULTS.md: everything measured in one or more experiments, written from their files and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from espnet_todm.deploy.search_options import GREEDY
from espnet_todm.files import PathLike, link, write_text
from espnet_todm.report.environment import Environment, describe_environment
from espnet_todm.report.experiment import Experiment, load_experiment
from espnet_todm.report.pareto import plot_experiment
from espnet_todm.report.scoring import official_size_note
from espnet_todm.report.selection_page import selection_section
from espnet_todm.report.tables import difference_table, error_table, size_table
from espnet_todm.trainers.selection_log import CARDS


def write_results(
    experiments: Sequence[PathLike],
    output: PathLike,
    label: str,
    commands: Sequence[str] = (),
    config: Optional[PathLike] = None,
    corpus: Optional[str] = None,
    plots: Optional[PathLike] = None,
) -> str:
    """Draw the plots and write RESULTS.md; returns its text.

    experiments: folders; output: the file; label: what the data are; commands: as typed, quoted in the report.
    config: training config of the first experiment to link, by default its own config.yaml, as for the others; corpus: see
    ``official_size_note``.
    plots: folder for the pictures, by default ``<experiment>/report``. Raises UserError when one was never scored.
    """
    loaded = [load_experiment(folder) for folder in experiments]
    environment = describe_environment(commands)  # before the pictures, which may change a checkout
    home = Path(output).resolve().parent
    sections = []
    for experiment in loaded:
        pictures = plot_experiment(experiment, plots or experiment.folder / "report")
        path = Path(config if config and experiment is loaded[0] else experiment.folder / "config.yaml")
        links = [link(picture, home) for picture in pictures]
        sections.append(model_section(experiment, label, link(path, home) if path.exists() else None, links, corpus))
        if (experiment.folder / CARDS).is_dir():  # the sizes were learned
            sections.append(selection_section(experiment.folder, plots or experiment.folder / "report", home))
    text = "\n".join(["# RESULTS\n", environment_section(environment), *sections])
    write_text(output, text)
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
    params = [size.params for size in experiment.sizes if size.params is not None]
    if params:
        facts.append(f"- #Params: {min(params) / 1e6:.2f} M to {max(params) / 1e6:.2f} M in {len(params)} sizes")
    facts += [f"- Search: {line}" for line in search_lines(experiment)]
    facts += [f"- Note: {note}" for note in _notes(experiment, corpus)]
    scores = experiment.scores()
    parts = [
        f"## {experiment.tag}\n" + "\n".join(facts) + "\n",
        "### Sizes\n" + size_table(experiment) + _speed_note(experiment),
        _cost_section(experiment.training_cost),
        "".join(f"![word error rate against cost]({picture})\n" for picture in pictures),
        "### WER\n" + error_table(scores),
        "### CER\n" + error_table(scores, "characters"),
    ]
    differences = difference_table(experiment)
    if differences:
        parts.append("### Differences between sizes (paired bootstrap)\n" + differences)
    return "\n".join(filter(None, parts))


def search_lines(experiment: Experiment) -> list[str]:
    """How each size was decoded where that was not greedy: beam, language model and scales, each said once."""
    lines = []
    for name, options in experiment.searches.items():
        if options.get("kind", GREEDY) == GREEDY:
            continue
        facts = [f"{options['kind']}, beam {options.get('beam_size')}"]
        if options.get("lm"):
            facts.append(f"language model {Path(options['lm']).parent.name}/{Path(options['lm']).name}")
            facts.append(f"its weight {options.get('lm_weight'):g}")
        facts += [
            f"{key.replace('_', ' ')} {options[key]:g}" for key in ("word_score", "prior_weight") if options.get(key)
        ]
        facts += ["closed vocabulary"] if options.get("lexicon") else []
        lines.append(f"{name}: {', '.join(facts)}")
    return lines


def _notes(experiment: Experiment, corpus: Optional[str]) -> list[str]:
    """What a reader must know about the scores, each said once."""
    notes = [official_size_note(score, corpus) for score in experiment.scores()]
    notes += [
        f"{score.split}/{score.size}: {score.missing} utterances had no hypothesis and count as empty"
        for score in experiment.scores()
        if score.missing
    ]
    return [note for note in dict.fromkeys(notes) if note is not None]


def _speed_note(experiment: Experiment) -> str:
    """Where the real-time factors were measured."""
    places = []
    for size in experiment.sizes:
        speed = size.speed
        if "rtf_median" in speed:
            facts = (("threads", "threads: {}"), ("cpu", "CPU: {}"), ("utterances", "utterances: {}"))
            places.append(", ".join(text.format(speed[key]) for key, text in facts if key in speed))
    lines = "".join(f"RTF measured with {place}.\n" for place in dict.fromkeys(filter(None, places)))
    return f"\n{lines}" if lines else ""


def _cost_section(cost: dict[str, Any]) -> str:
    """Training-cost factor against one model, as far as it was measured."""
    names = {
        "factor": ("time of a supernet step against one model's", "{:.2f}"),
        "bound": ("its lower bound (F + sum E_i) / (F + E_max)", "{:.2f}"),
        "single_step_seconds": ("one model's step", "{:.3f} s"),
        "supernet_step_seconds": ("supernet step", "{:.3f} s"),
    }
    lines = [f"- {name}: {form.format(cost[key])}" for key, (name, form) in names.items() if _is_number(cost.get(key))]
    memory = cost.get("peak_memory_mib")
    for name, value in memory.items() if isinstance(memory, dict) else ():
        if _is_number(value):
            lines.append(f"- peak memory, {name}: {value:.0f} MiB")
    return "### Training cost\n" + "\n".join(lines) + "\n" if lines else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
