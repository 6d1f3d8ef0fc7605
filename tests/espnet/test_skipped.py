"""A training that changes nothing ends with one line; a few steps that were skipped are told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

import kaldiio
import numpy as np
import pytest
import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from torch.cuda.amp import GradScaler

from espnet_todm.bin.asr_train import main as train
from espnet_todm.errors import UserError
from espnet_todm.espnet import skipped
from espnet_todm.espnet.skipped import SkippedSteps, check_validation
from espnet_todm.espnet.trainer import TodmTrainer
from tests.tiny_model import tiny_model, trained_by
from tests.tiny_training import arguments, python, write_data
from tests.trainers.epochs import batches, train_epoch, trainer_options


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def test_a_few_skipped_steps_are_told_with_their_count_and_cause(caplog) -> None:
    model = trained_by()
    train_epoch(model, batches(False, True, False, True), sgd(model))
    assert "epoch 1: 2 of 4 steps were skipped: features not finite (NaN or Inf) in utt1a, utt3a" in caplog.text
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_step_of_several_batches_is_skipped_for_any_of_them(caplog) -> None:
    model = trained_by()
    train_epoch(model, batches(True, False, False, False, False), sgd(model), accum_grad=2)
    assert "1 of 2 steps were skipped: features not finite (NaN or Inf) in utt0a;" in caplog.text


def test_an_undisturbed_epoch_says_nothing(caplog) -> None:
    model = trained_by()
    train_epoch(model, batches(False, False), sgd(model))
    assert "skipped" not in caplog.text


def test_an_epoch_without_an_update_ends_the_training() -> None:
    model = trained_by()
    with pytest.raises(
        UserError, match=r"all 5 steps of epoch 1 were skipped: .* utt0a, utt1a, utt2a and 2 more; mend"
    ):
        train_epoch(model, batches(*[True] * 5), sgd(model))
    with pytest.raises(UserError, match=r"accum_grad: 4, but epoch 1 has 3 batches"):
        train_epoch(model, batches(*[False] * 3), sgd(model), accum_grad=4)
    with pytest.raises(UserError, match=r"epoch 1 has 0 batches"):
        train_epoch(model, [], sgd(model))


def test_many_skipped_steps_in_a_row_end_the_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipped, "MOST_IN_A_ROW", 3)
    model = trained_by()
    train_epoch(model, batches(False, True, True, False, True, True), sgd(model))
    with pytest.raises(UserError, match="3 steps in a row were skipped: features not finite"):
        train_epoch(model, batches(False, True, True, True, False), sgd(model))
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)
    with pytest.raises(
        UserError, match=r"skipped: loss or gradient not finite, the features are; a lower learning rate"
    ):
        train_epoch(model, batches(False, False, False), sgd(model))


class Scaler(GradScaler):
    """As torch's, which works on GPUs alone: halves its scale whenever the gradient is not finite."""

    def __init__(self, scale: float) -> None:
        super().__init__(enabled=False)
        self.scale_now, self.finite = scale, True

    def get_scale(self) -> float:
        return self.scale_now

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.scale_now

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        for gradient in gradients:
            gradient /= self.scale_now

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.finite:
            optimizer.step()

    def update(self) -> None:
        self.scale_now *= 1.0 if self.finite else 0.5


def steps_of(
    norms: list[Optional[float]], losses: list[float], scales: list[float], accum_grad: int = 1
) -> SkippedSteps:
    """After an epoch that reported these norms (None: skipped) and losses."""
    reporter, scale = SubReporter("train", 1, 0), iter(scales)
    steps = SkippedSteps(batches(*[False] * len(losses)), reporter, accum_grad, lambda: next(scale))
    for number, _ in enumerate(steps):
        reporter.register({"loss": losses[number]}, 2)
        norm = norms[number // accum_grad] if (number + 1) % accum_grad == 0 else None
        if norm is not None:
            reporter.register({"grad_norm": norm})
        reporter.next()
    steps.finish()
    return steps


def test_what_loss_scaling_skips_while_it_looks_for_a_scale_is_no_fault() -> None:
    steps = steps_of([None, None, 3.0], [1.0] * 3, [65536.0, 32768.0, 16384.0])
    assert (steps.made, steps.searching, steps.skipped) == (1, 2, 0)
    assert steps_of([None, None], [1.0, 1.0], [65536.0, 32768.0]).searching == 2  # a whole, short epoch


def test_what_no_scale_can_mend_is_skipped_for_another_reason() -> None:
    assert steps_of([3.0, None], [1.0, math.nan], [65536.0] * 2).skipped == 1
    assert steps_of([3.0, None], [1.0, 1.0], [2.0, 1.0]).skipped == 1
    assert steps_of([3.0, None], [1.0, 1.0, math.inf, 1.0], [8.0] * 4, accum_grad=2).skipped == 1
    assert steps_of([3.0, None], [1.0] * 4, [8.0] * 4, accum_grad=2).searching == 1


def test_a_scaled_training_that_needs_an_epoch_for_its_scale_goes_on() -> None:
    model, scaler = trained_by(), Scaler(2.0**126)
    before = next(model.parameters()).clone()
    train_epoch(model, batches(False), sgd(model), scaler)
    assert scaler.scale_now == 2.0**125 and torch.equal(before, next(model.parameters()))


def validation(losses: list[float]) -> SubReporter:
    reporter = SubReporter("valid", 2, 0)
    for loss in losses:
        reporter.register({"loss": loss}, 4)
        reporter.next()
    return reporter


def test_a_validation_without_a_finite_loss_ends_the_training(caplog) -> None:
    with pytest.raises(UserError, match=r"validation of epoch 2: the loss is not finite in any of its 3 batches"):
        check_validation(validation([math.nan, math.inf, math.nan]))
    assert not caplog.text
    check_validation(validation([math.nan, 1.0, math.nan]))
    assert "epoch 2: the loss of 2 of 3 validation batches is not finite" in caplog.text
    caplog.clear()
    check_validation(validation([2.0, 1.0]))
    check_validation(validation([]))
    assert not caplog.text


def test_the_trainer_checks_its_validation() -> None:
    model = tiny_model()
    model.subnet_trainer = trained_by().subnet_trainer
    with Reporter().observe("valid") as part, pytest.raises(UserError, match="not finite in any of its 2 batches"):
        TodmTrainer.validate_one_epoch(
            model=model,
            iterator=batches(True, True),
            reporter=part,
            options=trainer_options(),
            distributed_option=DistributedOption(),
        )


def break_features(data: Path, names: str) -> None:
    """NaN in the features of all utterances whose name begins so."""
    features: dict[str, Any] = {}
    for name, array in kaldiio.load_scp(str(data / "feats.scp")).items():
        features[name] = np.full_like(array, np.nan) if name.startswith(names) else array
    kaldiio.save_ark(str(data / "broken.ark"), features, scp=str(data / "feats.scp"))


def test_a_real_run_on_features_that_are_no_numbers_fails_with_one_line(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    break_features(data, "utt")
    with pytest.raises(UserError, match="training: all 3 steps of epoch 1 were skipped: features not finite"):
        train(arguments(data, tmp_path / "exp"))
    assert not list((tmp_path / "exp").glob("*.pth"))


@pytest.mark.recipe
def test_ranks_agree_on_skipped_steps_and_all_name_the_utterances(tmp_path: Path) -> None:
    """utt10 and utt11 are in one batch of two ranks, one for each."""
    data = write_data(tmp_path / "data")
    break_features(data, "utt11")
    command = ["-m", "espnet_todm.bin.asr_train_cpu", "--processes", "2", "--"]
    done = python(
        [*command, *arguments(data, tmp_path / "exp", "--max_epoch", "2", "--encoder_conf", "conv_norm=batch_norm")]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch 1: 1 of 3 steps were skipped: features not finite (NaN or Inf) in utt11" in done.stderr
    state = torch.load(tmp_path / "exp" / "2epoch.pth", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state.values())
