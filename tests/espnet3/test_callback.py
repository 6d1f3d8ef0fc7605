"""Lightning trains a supernet as a plain loop does, and a resumed training goes on with the next step.

The LightningModule stands in for ESPnet 3's, whose step is ``loss, stats, weight = self.model(**batch[1])``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from espnet_todm.errors import UserError
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.eden import Eden
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.tiny_model import tiny_model, trained_by
from tests.trainers.epochs import batches

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
from espnet_todm.espnet3.callback import TellStep  # noqa: E402

BATCHES, EPOCHS = 3, 2


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _step(self, batch: Any, mode: str) -> Tensor:
        loss, stats, weight = self.model(**batch[1])
        shown = {f"{mode}/{name}": value.item() for name, value in stats.items() if value is not None}
        self.log_dict(shown, batch_size=weight.item())
        return loss  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, _: int) -> Tensor:
        return self._step(batch, "valid")

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = optimization(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def optimization(model: nn.Module) -> tuple[torch.optim.Optimizer, Eden]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return optimizer, Eden(optimizer, lr_batches=2, lr_epochs=0.5, warmup_batches=0)


def kd() -> TodmModel:
    torch.manual_seed(0)
    return trained_by(kd_weight=0.5)


def two_stage() -> TodmModel:
    """It chooses its sizes, and reorders components, before step 2."""
    torch.manual_seed(0)
    model = tiny_model(sizes={"middle": 0.7, "small": 0.45}).train()
    model.subnet_trainer = TwoStageTrainer(model, stage1_steps=2, layer_drop=0.0)
    return model


def by_lightning(model: nn.Module, folder: Path, epochs: int = EPOCHS, resume: Optional[Path] = None) -> Any:
    """Lightning's trainer after these epochs."""
    loader = DataLoader(batches(*[False] * BATCHES), batch_size=None, collate_fn=_same)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[TellStep(str(folder))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(model), loader, loader, ckpt_path=resume)
    return trainer


def _same(batch: Any) -> Any:
    return batch


def by_hand(model: TodmModel) -> None:
    optimizer, scheduler = optimization(model)
    setup, step = TrainingSetup([optimizer], BATCHES * EPOCHS), 0
    assert model.subnet_trainer is not None
    for epoch in range(EPOCHS):
        scheduler.set_epoch(epoch)
        for _, tensors in batches(*[False] * BATCHES):
            model.subnet_trainer.prepare(model, step, setup)
            optimizer.zero_grad()
            model(**tensors, step=step)[0].sum().backward()
            optimizer.step()
            scheduler.step()
            step += 1


def same(ours: nn.Module, expected: Mapping[str, Tensor]) -> None:
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("make", [kd, two_stage])
def test_lightning_trains_as_a_plain_loop_does_and_resumes(make: Callable[[], TodmModel], tmp_path: Path) -> None:
    expected, whole, again = make(), make(), make()
    by_hand(expected)
    by_lightning(whole, tmp_path)
    same(whole, expected.state_dict())
    by_lightning(make(), tmp_path, epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    by_lightning(again, tmp_path, resume=tmp_path / "first.ckpt")
    same(again, expected.state_dict())


def test_steps_and_what_validation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    forward = TodmModel.forward

    def recorded(self: TodmModel, *args: Any, **kwargs: Any) -> Any:
        told.append((self.training, kwargs["step"], kwargs.get("error_rates"), kwargs.get("loss_scale")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(TodmModel, "forward", recorded)
    model = kd()
    model.error_rates_every = 2
    trainer = by_lightning(model, tmp_path)
    before = [(False, 0, True, None), (False, 0, False, None)]  # Lightning tries two batches of the validation first
    first = [(False, 2, number != 1, None) for number in range(BATCHES)]
    second = [(False, 5, number != 1, None) for number in range(BATCHES)]
    steps = [(True, step, None, 1.0) for step in range(6)]
    assert told == [*before, *steps[:3], *first, *steps[3:], *second]
    assert "valid/cer_ctc_small" in trainer.callback_metrics


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="callbacks: TellStep is for model: todm, but this training has Linear"):
        by_lightning(nn.Linear(2, 2), tmp_path)
