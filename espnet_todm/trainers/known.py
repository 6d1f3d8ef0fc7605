"""All subnet trainers, by their names in ``subnet_trainer:``."""

from __future__ import annotations

from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer

# Older trainer names: each means two_stage with the selection of the same name.
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
    """The two-stage trainer with the selection of this name."""
    return type(selection, (TwoStageTrainer,), {"alias_of": selection, "__doc__": TwoStageTrainer.__doc__})
