"""Every trainer's steps with batch norm in the convolution, whose sets keep some of its groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_todm.components import FULL
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.known import alias
from espnet_todm.trainers.single import SingleTrainer
from tests.tiny_model import batch, gradients, run, tiny_model

SHARES = {"middle": 0.7, "small": 0.45}
SOME_GROUPS = {"middle": {"conv": 0.75}, "small": {"depth": 0.67, "conv": [2, 2, 2]}}
TRAINERS: list[tuple[type[SubnetTrainer], dict[str, Any], dict[str, Any]]] = [
    (KDTrainer, {"search_space": {"conv": [0.5, 0.75]}}, SOME_GROUPS),
    (SingleTrainer, {"size": "small"}, SOME_GROUPS),
    (AuxLossTrainer, {}, {"small": {"depth": 0.34, "drop": "last"}}),
    *((alias(kind), {"stage1_steps": 2}, SHARES) for kind in ("ortho_softmax", "top_k", "zero_out")),
    *((alias(kind), {}, SHARES) for kind in ("random_nested", "uniform")),
]


@pytest.mark.parametrize(("trainer", "conf", "sizes"), TRAINERS, ids=lambda given: getattr(given, "__name__", ""))
def test_every_trainers_steps_have_gradients_and_leave_statistics(trainer: Any, conf: dict, sizes: dict) -> None:
    model = tiny_model(conv_norm="batch_norm", conv_groups=4, sizes=sizes).train()
    model.subnet_trainer = trainer(model, **conf)
    for step in range(5):
        model.zero_grad()
        loss, _ = run(model, batch(seed=step), step)
        loss.backward()
        assert all(bool(g.isfinite().all()) for g in gradients(model).values() if g is not None)
    assert all(bool(value.isfinite().all()) for value in model.buffers())
    picked = {subnet.name for step in range(5) for subnet in model.subnet_trainer.picked(step)}
    owners = [norm for block in model.encoder.encoders for norm in (block.conv_module.size_norms.values())]
    assert picked == {FULL} or any(not torch.equal(n.running_var, torch.ones_like(n.running_var)) for n in owners)


def test_a_batch_of_one_encoder_frame_is_trained_on() -> None:
    model = tiny_model(conv_norm="batch_norm", sizes={"small": {"depth": 0.67}}).train()
    model.subnet_trainer = KDTrainer(model)
    one = batch(utterances=1, frames=17, tokens=2)
    assert model.encoder.subsampled(int(one.speech_lengths)) == 1
    loss, _ = run(model, one)
    loss.backward()
    assert bool(loss.isfinite())
