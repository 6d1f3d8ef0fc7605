"""``split_batch``: each subnet trains on utterances of its own; together they train on the whole batch."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch
from espnet_todm.models.subnet_trainer import TrainingSetup, passes_cost
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.split_batch import own_rows
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, tiny_model

SPLIT: dict[str, Any] = {"split_batch": True, "kd_weight": 0.0, "random_subnets": "all"}


@pytest.mark.parametrize("utterances, subnets", [(7, 3), (3, 3), (8, 2), (5, 1)])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_every_utterance_is_of_one_subnet(utterances: int, subnets: int, step: int) -> None:
    rows = [list(range(utterances))[own_rows(utterances, number, subnets, step)] for number in range(subnets)]
    assert sorted(row for part in rows for row in part) == list(range(utterances))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_batch_with_fewer_utterances_than_subnets_is_of_all() -> None:
    assert [list(range(2))[own_rows(2, number, 3, 4)] for number in range(3)] == [[0, 1]] * 3


def gradients(model: TodmModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found) if gradient is not None}


def by_hand(model: TodmModel, trainer: KDTrainer, whole: Batch, step: int) -> Tensor:
    """The mean loss of the subnets, each on a batch of its utterances alone."""
    subnets = trainer.picked(step)
    losses = []
    for number, subnet in enumerate(subnets):
        of = whole.rows(own_rows(len(whole.text), number, len(subnets), step))
        losses.append(model.run_subnet(model.run_subsampling(of), of, subnet).loss)
    return torch.stack(losses).mean()


def rnnt() -> TodmModel:
    """Its subnets would use the max subnet's pruning ranges if they had the same speech."""
    pytest.importorskip("torchaudio")
    made = transducer(trainer=None, model={"transducer_conf": {"prune_range": 3}})
    assert made.lends_ranges
    return made


@pytest.mark.parametrize("make", [tiny_model, lambda: tiny_model(0.3), rnnt], ids=["CTC", "attention", "RNN-T"])
@pytest.mark.parametrize("step", [0, 4])
def test_the_gradient_is_that_of_each_subnet_on_its_own_utterances(make: Callable[[], TodmModel], step: int) -> None:
    model = make().train()
    model.subnet_trainer = trainer = KDTrainer(model, **SPLIT)
    whole = batch(utterances=5)
    loss, stats = trainer.step(model, whole, step)
    expected = by_hand(model, trainer, whole, step)
    torch.testing.assert_close(loss.detach(), expected.detach())
    assert {"loss_full", "loss_middle", "loss_small"} <= stats.keys()
    got, want = gradients(model, loss), gradients(model, expected)
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_a_step_costs_the_mean_of_its_subnets() -> None:
    model = tiny_model()
    trainer, table = KDTrainer(model, **SPLIT), model.component_table()
    one, three = [[trainer.picked(0)[0]]], [trainer.picked(0)]
    assert passes_cost(table, one, split=True) == pytest.approx(passes_cost(table, one)) == pytest.approx(1.0)
    assert passes_cost(table, three, split=True) < 1 < passes_cost(table, three)
    assert trainer.model_steps(table, 10) == pytest.approx(10 * passes_cost(table, three, split=True))


def two_stage(step: int, **options: Any) -> TodmModel:
    """Step 0 is the warm-up, step 1 the first stage, step 2 the second."""
    model = tiny_model(sizes={"small": 0.6, "middle": 0.8}).train()
    conf = {"split_batch": True, "warmup_steps": 1, "stage1_steps": 2, "layer_drop": 0.0, **options}
    model.subnet_trainer = TwoStageTrainer(model, **conf, penalty_weight=0.0)
    for reached in range(step + 1):
        model.subnet_trainer.prepare(model, reached, TrainingSetup())
    return model


def two_stage_by_hand(model: TodmModel, whole: Batch, step: int) -> Tensor:
    """The sum over subnets of w times the loss per frame, each on a batch of its utterances alone."""
    trainer = model.subnet_trainer
    assert isinstance(trainer, TwoStageTrainer)
    subnets, total = trainer.picked(step), torch.zeros(())
    for number, subnet in enumerate(subnets):
        of = whole.rows(own_rows(len(whole.text), number, len(subnets), step))
        features = model.run_subsampling(of)
        gates = None
        if number and not trainer.decided:
            gates = trainer.selection.units.gates(trainer.selection.weights(subnet.name, step - 1))
        loss = model.run_subnet(features, of, subnet, gates).loss * len(of.text) / features.lengths.sum()
        total = total + (loss if number == 0 else (1 - torch.exp(-loss)).detach() * loss)
    return total


@pytest.mark.parametrize("step, subnets", [(0, 1), (1, 2), (2, 3)])
def test_both_stages_train_each_subnet_on_its_own_utterances(step: int, subnets: int) -> None:
    model, whole = two_stage(step), batch(utterances=5)
    assert len(model.subnet_trainer.picked(step)) == subnets
    loss, _ = model.subnet_trainer.step(model, whole, step)
    expected = two_stage_by_hand(model, whole, step)
    torch.testing.assert_close(loss.detach(), expected.detach())
    got, want = gradients(model, loss), gradients(model, expected)
    assert got.keys() >= want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_two_stages_cost_the_means_of_their_subnets() -> None:
    model = two_stage(2)
    trainer, table = model.subnet_trainer, model.component_table()
    second = passes_cost(table, [trainer.picked(2)], split=True)
    # One warm-up step of the full model, one with two gated passes on half the batch each, and ten of the second stage.
    assert trainer.model_steps(table, 12) == pytest.approx(1 + 1 + 10 * second)
    assert second < 1


def test_two_stages_refuse_distillation_between_different_speech() -> None:
    with pytest.raises(UserError, match="nothing to distil; set kd_weight: 0"):
        two_stage(0, kd_weight=0.5)
    with pytest.raises(UserError, match="split_batch"):
        two_stage(0, split_batch="yes")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kd_weight": 0.5}, "nothing to distil; set kd_weight: 0"),
        ({"kd_only_share": 0.3}, "leave out kd_only_share"),
        ({"views": {"where": "subsampled", "consistency": 0.0}}, "leave out views"),
        ({"split_batch": "yes"}, "split_batch"),
    ],
)
def test_what_needs_the_same_speech_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        KDTrainer(tiny_model(), **{**SPLIT, **options})
    assert "\n" not in str(caught.value)
