"""What a training took: updates, also of each size, cost in steps of one model, and hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_todm.errors import UserError
from espnet_todm.espnet.checkpoint_files import check_checkpoint, is_training_state
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.models.subnet_trainer import SizeUpdates


@dataclass(frozen=True)
class Training:
    """updates; hours of training alone, without validation; model_steps: cost of all updates in steps of one full model, by
    the FLOPs of the passes that each step makes; size_updates: updates in which each size was trained."""

    updates: int
    hours: float
    model_steps: float
    size_updates: Mapping[str, SizeUpdates]


def read_training(experiment: Path) -> Training:
    """From checkpoint.pth, and from the trainer, which knows what it picked in each step. Raises UserError when something is
    missing."""
    updates, hours = read_record(experiment)
    return Training(updates, hours, *replay(experiment, updates))


def read_record(experiment: Path) -> tuple[int, float]:
    """Updates and hours, from the record of epochs in checkpoint.pth. Raises UserError when it is missing or tells of no
    epoch."""
    path = experiment / "checkpoint.pth"
    state = check_checkpoint(path)
    epochs = state["reporter"]["stats"] if is_training_state(state) else {}
    trained = [stats["train"] for stats in epochs.values() if "train" in stats]
    if not trained:
        raise UserError(f"{path}: tells of no epoch that was trained to its end")
    seconds = sum(one["time"].total_seconds() for one in trained)
    return max(one["total_count"] for one in trained), seconds / 3600


def replay(experiment: Path, updates: int) -> tuple[float, dict[str, SizeUpdates]]:
    """Model-steps and each size's updates, from the trainer of the last epoch's model."""
    from espnet_todm.deploy.extract import load_supernet

    config = experiment / CONFIG
    checkpoints = list(experiment.glob("*epoch.pth"))
    if not checkpoints:
        raise UserError(f"{experiment}: has no <number>epoch.pth; train it first (stage 11)")
    model = load_supernet(config, max(checkpoints, key=lambda path: path.stat().st_mtime)).model
    trainer = model.subnet_trainer
    if trainer is None:
        raise UserError(f"{config}: names no subnet_trainer")
    table = model.component_table()
    return trainer.model_steps(table, updates), trainer.size_updates(model.encoder.sizes, updates)
