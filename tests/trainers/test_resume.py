"""A real ESPnet training that dies and goes on ends with the very weights of one that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_todm.espnet.trainer import TodmTrainer
from tests.tiny_training import arguments, python, write_config, write_data

COMMAND = ["-m", "espnet_todm.bin.asr_train"]
# 3 batches an epoch: step 4 is in the middle of epoch 2.
DIE_IN_STEP = """
import os, signal, sys
from espnet_todm.bin.asr_train import main
from espnet_todm.trainers.kd import KDTrainer
train = KDTrainer.step
def step(self, model, batch, step):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return train(self, model, batch, step)
KDTrainer.step = step
main(sys.argv[1:])
"""
DIE_IN_CHECKPOINT = """
import os, signal, sys, torch
from espnet_todm.bin.asr_train import main
save, seen = torch.save, []
def dying_save(obj, f, *args, **kwargs):
    save(obj, f, *args, **kwargs)
    seen.append("checkpoint.pth" in str(f))
    if seen[-1]:
        f.flush()
        os.truncate(f.name, os.path.getsize(f.name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying_save
main(sys.argv[1:])
"""


def _train(data: Path, output: Path, *more: str) -> dict[str, torch.Tensor]:
    done = python([*COMMAND, *arguments(data, output, *more)])
    assert done.returncode == 0, done.stderr[-3000:]
    last = max(output.glob("*epoch.pth"), key=lambda path: int(path.name.split("epoch")[0]))
    weights: dict[str, torch.Tensor] = torch.load(last, weights_only=True)
    return weights


def _die(data: Path, output: Path, program: str) -> None:
    killed = python(["-c", program, *arguments(data, output)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert (output / "1epoch.pth").exists() and not (output / "2epoch.pth").exists()


@pytest.mark.recipe
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Stopped after epoch 1, killed in the middle of epoch 2, killed again while it writes a checkpoint, then finished.

    The trainer has state of its own: the running average of its teacher's loss, and the teacher's averaged weights. The
    model has an average of its weights.
    """
    data = write_data(tmp_path / "data")
    start = {"loss_per_label": 100.0, "full_at": 0.1}
    write_config(
        data / "config.yaml",
        subnet_trainer_conf={"kd_start": start, "teacher": {"kind": "ema", "decay": 0.9}},
        model_conf={"ctc_weight": 1.0, "average_weights": 0.3},
    )
    expected = _train(data, tmp_path / "undisturbed")
    first = _train(data, tmp_path / "exp", "--max_epoch", "1")
    assert any(not torch.equal(first[name], expected[name]) for name in first)
    _die(data, tmp_path / "exp", DIE_IN_STEP)
    _die(data, tmp_path / "exp", DIE_IN_CHECKPOINT)
    assert list((tmp_path / "exp").glob(".*.part"))
    got = _train(data, tmp_path / "exp")
    assert not list((tmp_path / "exp").glob(".*.part"))
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.mark.recipe
def test_a_run_killed_between_checkpoint_and_model_goes_on(tmp_path: Path) -> None:
    data, output = write_data(tmp_path / "data"), tmp_path / "exp"
    first = _train(data, output, "--max_epoch", "1")
    for name in ("1epoch.pth", "latest.pth", "valid.loss.best.pth"):
        (output / name).unlink()
    _train(data, output, "--max_epoch", "1")
    assert (output / "valid.loss.best.pth").readlink().name == (output / "latest.pth").readlink().name == "1epoch.pth"
    _train(data, output, "--max_epoch", "2", "--keep_nbest_models", "2")
    again = torch.load(output / "1epoch.pth", weights_only=True)
    assert [name for name in first if not torch.equal(again[name], first[name])] == []


@pytest.mark.parametrize("best", [1, 2])
def test_a_resumed_run_has_the_models_and_links_of_its_checkpoint(tmp_path: Path, monkeypatch, best: int) -> None:
    """Killed behind checkpoint.pth of epoch 2, with or without the links of epoch 1."""
    reporter, model = Reporter(), torch.nn.Linear(2, 2)
    for epoch in (1, 2):
        reporter.set_epoch(epoch)
        with reporter.observe("valid") as part:
            part.register({"loss": 1.0 if epoch == best else 2.0})
            part.next()
    states = {"model": model.state_dict(), "reporter": reporter.state_dict(), "optimizers": [], "schedulers": []}
    torch.save({**states, "scaler": None}, tmp_path / "checkpoint.pth")
    torch.save({"older": torch.zeros(1)}, tmp_path / "1epoch.pth")
    if best == 2:
        for name in ("latest.pth", "valid.loss.best.pth"):
            (tmp_path / name).symlink_to("1epoch.pth")
    found = {"model": torch.nn.Linear(2, 2), "optimizers": [], "schedulers": [], "scaler": None}
    resume = {"checkpoint": tmp_path / "checkpoint.pth", "reporter": Reporter(), **found}
    TodmTrainer.resume(**resume)  # another rank than the first
    assert not (tmp_path / "2epoch.pth").exists()
    monkeypatch.setattr(TodmTrainer, "criteria", [["valid", "loss", "min"], ["valid", "acc", "max"]])
    TodmTrainer.resume(**resume)
    assert torch.equal(torch.load(tmp_path / "2epoch.pth", weights_only=True)["weight"], model.weight)
    links = {path.name: path.readlink().name for path in tmp_path.iterdir() if path.is_symlink()}
    assert links == {"latest.pth": "2epoch.pth", "valid.loss.best.pth": f"{best}epoch.pth"}
