"""A table of methods x sizes: error rates with intervals, costs, and what the training of each took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.espnet.checkpoint_files import check_checkpoint, is_training_state
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.report.environment import Environment
from espnet_todm.report.experiment import SizeResult, load_experiment
from espnet_todm.report.plan import Method
from espnet_todm.report.results import environment_section
from espnet_todm.report.selection_page import selection_section
from espnet_todm.report.tables import number_cell
from espnet_todm.scoring.scores import rate_cell
from espnet_todm.trainers.selection_log import CARDS
from espnet_todm.util.checks import is_number
from espnet_todm.util.files import PathLike, write_text
from espnet_todm.util.markdown import markdown_table


@dataclass(frozen=True)
class Training:
    """What a training's own record says: updates, and hours of training alone, without validation."""

    updates: int
    hours: float


def read_training(experiment: Path) -> Training:
    """From the record of epochs in checkpoint.pth. Raises UserError when it is missing or tells of no epoch."""
    path = experiment / "checkpoint.pth"
    state = check_checkpoint(path)
    epochs = state["reporter"]["stats"] if is_training_state(state) else {}
    trained = [stats["train"] for stats in epochs.values() if "train" in stats]
    if not trained:
        raise UserError(f"{path}: tells of no epoch that was trained to its end")
    seconds = sum(one["time"].total_seconds() for one in trained)
    return Training(max(one["total_count"] for one in trained), seconds / 3600)


def model_steps(experiment: Path, updates: int) -> float:
    """Cost of all updates in steps of training one full model, by the FLOPs of the passes that each step makes."""
    from espnet_todm.deploy.extract import load_supernet

    config = experiment / CONFIG
    checkpoint = max(experiment.glob("*epoch.pth"), key=lambda path: path.stat().st_mtime)
    model = load_supernet(config, checkpoint).model
    if model.subnet_trainer is None:
        raise UserError(f"{config}: names no subnet_trainer")
    return model.subnet_trainer.model_steps(model.component_table(), updates)


def comparison_table(methods: Sequence[tuple[Method, Path]]) -> str:
    """Markdown, one row for each method and size, the sizes of all methods in the order of their cost."""
    loaded = [(method, load_experiment(folder)) for method, folder in methods]
    splits = list(dict.fromkeys(split for _, experiment in loaded for split in experiment.splits))
    trained = {method.name: read_training(folder) for method, folder in methods}
    steps = {method.name: model_steps(folder, trained[method.name].updates) for method, folder in methods}
    header = ["size", "method", *(f"WER {split} [95%]" for split in splits)]
    header += ["params (M)", "GFLOPs per s", "budget error (points)", "updates", "model-steps", "training hours"]
    rows = []
    for size in dict.fromkeys(name for method, _ in loaded for name in method.sizes):
        for method, experiment in loaded:
            result = next((result for result in experiment.sizes if result.name == size), None)
            if result is not None:
                costs = [f"{trained[method.name].updates}", f"{steps[method.name]:.0f}"]
                rows.append(
                    [size, method.name, *_cells(method, result, splits), *costs, f"{trained[method.name].hours:.2f}"]
                )
    return markdown_table(header, rows)


def _cells(method: Method, result: SizeResult, splits: Sequence[str]) -> list[str]:
    cells = [rate_cell(result.scores.get(split)) for split in splits]
    costs = number_cell(result.params, 1e-6, 3), number_cell(result.flops_per_second, 1e-9, 3)
    return [*cells, *costs, _budget_error(method.config, result)]


def _budget_error(config: Mapping[str, Any], result: SizeResult) -> str:
    """Percentage points between the share of the encoder that the size has and the one asked for; blank if none was."""
    conf = config["encoder_conf"]
    wanted: Any = conf["sizes"].get(result.name) if result.name != FULL else None
    share = result.encoder_shares.get(conf.get("criterion", "params"))
    if not is_number(wanted) or share is None:
        return ""
    return f"{100 * (share - wanted):+.2f}"


def write_comparison(methods: Sequence[tuple[Method, Path]], output: PathLike, label: str, plan: PathLike) -> str:
    """Write the table with its environment, and the components that each learned method chose; returns the text.

    label: what the data are; plan: quoted, since it is what was run.
    """
    home = Path(output).resolve().parent
    parts = [
        "# Comparison\n",
        environment_section(Environment(commands=(f"python -m espnet_todm.bin.compare --plan {plan}",))),
        f"- Data: {label}\n- Plan:\n\n```yaml\n{Path(plan).read_text(encoding='utf-8').strip()}\n```\n",
        "## Methods and sizes\n" + comparison_table(methods),
    ]
    for method, folder in methods:
        if (folder / CARDS).is_dir():
            section = selection_section(folder, Path(output).with_suffix(""), home)
            parts.append(f"## {method.name}\n{section}")
    text = "\n".join(parts)
    write_text(output, text)
    return text
