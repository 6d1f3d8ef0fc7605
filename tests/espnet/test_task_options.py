"""Options of ESPnet's training that a supernet cannot have, or that mean nothing: refused before anything is built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.task_options import check_frozen, check_training, noise_by_step
from tests.tiny_model import trained_by
from tests.tiny_training import arguments, write_data
from tests.trainers.epochs import batches, train_epoch


def options(**changes: Any) -> SimpleNamespace:
    """ESPnet's defaults."""
    base = {"model": "todm", "ngpu": 0, "accum_grad": 1, "log_interval": None, "distributed": False}
    switches = dict.fromkeys(("use_adapter", "sharded_ddp", "use_deepspeed", "multiprocessing_distributed"), False)
    switches.update(use_wandb=False, collect_stats=False)
    counts = dict.fromkeys(("batch_size", "batch_bins", "valid_batch_size", "valid_batch_bins"))
    return SimpleNamespace(**{**base, **switches, **counts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_adapter": True}, ["use_adapter: true", "model: todm", "freeze_param"]),
        ({"use_lora": True}, ["use_lora: true", "model: todm", "freeze_param"]),
        ({"sharded_ddp": True}, ["sharded_ddp: true", "model: todm", "DistributedDataParallel"]),
        ({"use_deepspeed": True, "model": "espnet"}, ["use_deepspeed: true", "DistributedDataParallel"]),
        ({"accum_grad": 0}, ["accum_grad: 0", ">= 1"]),
        ({"log_interval": 0}, ["log_interval: 0", ">= 1"]),
        ({"ngpu": 2}, ["ngpu: 2", "--multiprocessing_distributed true"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_training(options(**changes))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_works_passes() -> None:
    check_training(options())
    check_training(options(model="espnet", use_adapter=True, ngpu=2, log_interval=5, accum_grad=4))
    check_training(options(ngpu=1, distributed=True))
    check_training(options(ngpu=2, multiprocessing_distributed=True))


def test_freeze_param_names_parts_and_leaves_something() -> None:
    model = trained_by()
    check_frozen(model, ["encoder.embed", "ctc"])
    with pytest.raises(UserError, match=r"freeze_param: 'encodr' is no part of the model; it has encoder, ctc"):
        check_frozen(model, ["encodr"])
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(UserError, match="freeze_param: encoder, ctc: nothing is left to train"):
        check_frozen(model, ["encoder", "ctc"])


def test_the_training_command_looks_at_them(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for more, words in (
        (["--use_adapter", "true"], "use_adapter: true"),
        (["--freeze_param", "encoder.enbed"], "freeze_param: 'encoder.enbed'"),
        (["--ngpu", "2"], "ngpu: 2 in one process .* add --multiprocessing_distributed true"),
    ):
        with pytest.raises(UserError, match=words):
            main([*arguments(data, tmp_path / "exp"), *more])
    assert not list((tmp_path / "exp").glob("*.pth"))


def test_noise_of_gradients_is_the_same_on_all_ranks() -> None:
    """Ranks draw other numbers before the noise, where their parts of a batch have other lengths."""
    weights = []
    for drawn in (1, 2):
        model = trained_by()
        torch.manual_seed(0)
        torch.rand(drawn)
        state = torch.get_rng_state()
        with noise_by_step(seed=3):
            train_epoch(model, batches(False), torch.optim.SGD(model.parameters(), lr=0.1), grad_noise=True)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]).detach())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*weights)
    plain = trained_by()
    train_epoch(plain, batches(False), torch.optim.SGD(plain.parameters(), lr=0.1))
    assert not torch.allclose(weights[0], torch.cat([p.flatten() for p in plain.parameters()]))
