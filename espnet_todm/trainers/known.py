"""All subnet trainers by the names that ``subnet_trainer:`` calls them by."""

from __future__ import annotations

from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer

# Older names of two_stage with the selection that is called so.
ALIASES = ("ortho_softmax", "top_k", "zero_out", "random_nested", "uniform")


def trainers() -> dict[str, type[SubnetTrainer]]:
    """Name -> class."""
    return {
        "kd": KDTrainer,
        "single": SingleTrainer,
        "two_stage": TwoStageTrainer,
        "aux_loss": AuxLossTrainer,
        **{name: alias(name) for name in ALIASES},
    }


def alias(selection: str) -> type[TwoStageTrainer]:
    """The two-stage trainer under the name of a selection."""
    return type(selection, (TwoStageTrainer,), {"alias_of": selection, "__doc__": TwoStageTrainer.__doc__})
