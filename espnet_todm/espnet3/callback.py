"""A callback that does for Lightning's trainer what ``TodmTrainer`` does for ESPnet's: it tells a supernet its steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer

from espnet_todm.errors import UserError
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel


class TellStep(Callback):
    """Adds the step's number to each batch, calls ``prepare`` of the subnet trainer before, and ``set_epoch`` of schedulers.

    The LightningModule has the supernet as its attribute ``model``, and calls it with the mapping that is the second entry
    of a batch, as ESPnet 3 does. The number of steps is in Lightning's checkpoints.

    Args:
        output_dir: folder of the experiment, for trainers that write files; None: no files.

    Raises:
        UserError: the model is no supernet.
    """

    def __init__(self, output_dir: Optional[str] = None) -> None:
        self.output_dir = output_dir
        self.steps = 0  # batches of this training so far, in all epochs

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "set_epoch"):
                config.scheduler.set_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        model = _supernet(pl_module)
        if model.subnet_trainer is not None:
            first = Path(self.output_dir) if self.output_dir and trainer.is_global_zero else None
            setup = TrainingSetup(trainer.optimizers, _planned_steps(trainer), first)
            model.subnet_trainer.prepare(model, self.steps, setup)
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of float16
        batch[1].update(step=self.steps, loss_scale=1.0 if scaler is None else scaler.get_scale())

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The last training step. Before the first one, Lightning tries two batches, as if after step 0."""
        every = _supernet(pl_module).error_rates_every
        batch[1].update(step=max(self.steps - 1, 0), error_rates=batch_idx % every == 0)


def _supernet(module: LightningModule) -> TodmModel:
    model = getattr(module, "model", None)
    if not isinstance(model, TodmModel):
        raise UserError(f"callbacks: TellStep is for model: todm, but this training has {type(model).__name__}")
    if model.weight_average is not None:
        raise UserError(
            "average_weights: is for ESPnet's own trainer; with Lightning, leave it out and add its callback for averages"
        )
    return model


def _planned_steps(trainer: Trainer) -> Optional[int]:
    """Batches of the whole training. None if they are not known beforehand, or ``max_steps`` may end it earlier."""
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if trainer.max_steps != -1 or epochs is None or epochs < 0 or not math.isfinite(batches):
        return None
    return int(batches) * epochs
