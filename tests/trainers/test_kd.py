"""TODM's step: which subnets train, with which losses, what is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

import pytest
import torch

from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.subnet_trainer import TrainingSetup, passes_cost
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.util.checks import build
from tests.conftest import conformer, e_branchformer, mh_ssm
from tests.tiny_model import SIZES, batch, run, tiny_model, trained_by


def test_loss_is_the_mean_of_task_and_distillation_losses() -> None:
    model, of = trained_by(kd_weight=0.25), batch()
    loss, stats = run(model, of)
    small = 0.75 * stats["loss_small"] + 0.25 * stats["kd_small"]
    middle = 0.75 * stats["loss_middle"] + 0.25 * stats["kd_middle"]
    torch.testing.assert_close(loss.detach(), (stats["loss_full"] + middle + small) / 3)
    assert set(stats) == {"loss", "loss_ctc", "loss_full", "loss_middle", "loss_small", "kd_middle", "kd_small"}
    assert stats["loss_ctc"] == stats["loss_full"]  # ESPnet's own name, of the full size


def test_the_max_subnet_teaches() -> None:
    model, of = trained_by(divergence={"kind": "kl"}), batch()
    _, stats = run(model, of)
    subsampled = model.run_subsampling(of)
    teacher, student = (
        model.run_subnet(subsampled, of, model.encoder.sizes[n]).posteriors.ctc for n in ("full", "small")
    )
    expected = ctc_frame_distillation(teacher, student, subsampled.lengths, Divergence("kl"))
    torch.testing.assert_close(stats["kd_small"], expected.detach())


def test_the_teacher_learns_nothing_from_its_students() -> None:
    """With weight 1 the students have no labels: what only the teacher uses gets the same gradient without them."""
    of, gradients = batch(), []
    for trainer in ({"kd_weight": 1.0}, {"kd_weight": 1.0, "divergence": {"kind": "reverse_kl"}}):
        model = trained_by(**trainer)
        run(model, of)[0].backward()
        only_full = next(la for la in range(3) if la not in model.encoder.sizes["middle"].layers)
        gradients.append([p.grad for p in model.encoder.encoders[only_full].parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_without_distillation_no_posteriors_are_compared() -> None:
    loss, stats = run(trained_by(kd_weight=0), batch())
    assert not any(key.startswith("kd_") for key in stats)
    torch.testing.assert_close(loss.detach(), sum(stats[f"loss_{n}"] for n in ("full", "middle", "small")) / 3)


@pytest.mark.parametrize("make", [e_branchformer, mh_ssm])
def test_every_encoder_trains(make: Callable[..., SupernetEncoder]) -> None:
    model = tiny_model(supernet=make(sizes=SIZES)).train()
    model.subnet_trainer = KDTrainer(model)
    loss, stats = run(model, batch())
    loss.backward()
    assert {"loss_full", "loss_middle", "loss_small", "kd_middle", "kd_small"} <= stats.keys()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_hybrid_model_trains_decoder_and_distils() -> None:
    model, of = trained_by(ctc_weight=0.3), batch()
    loss, stats = run(model, of)
    loss.backward()
    assert {"kd_middle", "kd_small"} <= stats.keys()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kd_weight", [0, 0.5])
def test_attention_only_model_trains_decoder_and_distils(kd_weight: float) -> None:
    model, of = trained_by(ctc_weight=0.0, kd_weight=kd_weight), batch()
    loss, stats = run(model, of)
    loss.backward()
    assert ("kd_small" in stats) == (kd_weight > 0)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_picked_subnets_are_the_ones_that_train() -> None:
    model, of = trained_by(random_subnets=1, search_space={"depth": [0.3, 1.0], "ffn": [0.25, 1.0]}, seed=3), batch()
    for step in (0, 7):
        names = [subnet.name for subnet in model.subnet_trainer.picked(step)]
        assert names == ["full", "random0", "min"]
        assert {f"loss_{name}" for name in names} <= run(model, of, step)[1].keys()


def test_the_max_subnet_trains_alone_during_the_warm_up() -> None:
    model, of = trained_by(warmup_steps=2), batch()
    for step, names in ((0, ["full"]), (1, ["full"]), (2, ["full", "middle", "small"])):
        loss, stats = run(model, of, step)
        assert [subnet.name for subnet in model.subnet_trainer.picked(step)] == names
        assert {key for key in stats if key.startswith("loss_")} == {"loss_ctc", *(f"loss_{name}" for name in names)}
        if len(names) == 1:
            torch.testing.assert_close(loss.detach(), stats["loss_full"])
    with pytest.raises(UserError, match=r"warmup_steps: -1 .*whole number"):
        trained_by(warmup_steps=-1)


def test_sizes_join_and_the_cost_of_a_run_counts_them_from_then_on() -> None:
    model, of = trained_by(join={"middle": 0.25, "small": 0.5}, warmup_steps=1), batch()
    trainer, table = model.subnet_trainer, model.component_table()
    for step, names in ((0, ["full"]), (1, ["full"]), (2, ["full", "middle"]), (4, ["full", "middle", "small"])):
        trainer.prepare(model, step, TrainingSetup(planned_steps=8))
        _, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=step)
        assert [subnet.name for subnet in trainer.picked(step)] == names
        assert {key for key in stats if key.startswith("loss_")} == {"loss_ctc", *(f"loss_{name}" for name in names)}
    full, middle, small = (model.encoder.sizes[name] for name in ("full", "middle", "small"))
    steps = 2 * [[full]] + 2 * [[full, middle]] + 4 * [[full, middle, small]]
    planning = trained_by(join={"middle": 0.25, "small": 0.5}).subnet_trainer  # no run has begun
    assert planning.model_steps(table, 8) == pytest.approx(passes_cost(table, steps))
    counts = {name: count.sliced for name, count in planning.size_updates(model.encoder.sizes, 8).items()}
    assert counts == {"full": 8, "middle": 6, "small": 4}
    assert trainer.always_trained(model) == ["full"]


@pytest.mark.parametrize(
    "conf", [{}, {"warmup_steps": 3}, {"join": {"middle": 0.25, "small": 0.5}}, {"join": {"small": 2000}}]
)
def test_a_dry_run_comes_to_a_step_of_all_sizes(conf: dict) -> None:
    model = trained_by(**conf, moving_weight=[0.3, 0.7], kd_only_share=0.3)
    (step,) = model.subnet_trainer.walk_through(model)
    assert [subnet.name for subnet in model.subnet_trainer.picked(step)] == ["full", "middle", "small"]


def test_same_step_same_loss_other_step_another() -> None:
    model, of = trained_by(search_space={"depth": [0.3, 1.0], "ffn": [0.25, 1.0], "heads": [0.25, 1.0]}), batch()
    losses = []
    for step in (0, 5, 0):
        losses.append(run(model, of, step)[0].detach())
    assert torch.equal(losses[0], losses[2]) and not torch.equal(losses[0], losses[1])


def test_validation_measures_every_named_size() -> None:
    model = trained_by()
    assert [subnet.name for subnet in model.subnet_trainer.evaluated(model, None)] == ["full", "middle", "small"]


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"kd_weight": 1.5}, ["kd_weight", "1.5", ">= 0 and <= 1"]),
        ({"kd_weight": -0.1}, ["kd_weight", "-0.1", ">= 0 and <= 1"]),
        ({"kd_weight": "a lot"}, ["kd_weight", "a lot", ">= 0 and <= 1"]),
        ({"kd_weight": True}, ["kd_weight", "True", ">= 0 and <= 1"]),
        ({"kd_wieght": 0.5}, ["subnet_trainer_conf", "kd_wieght", "kd_weight"]),
        ({"divergence": {"kind": "euclid"}}, ["kind", "euclid", "reverse_kl"]),
        ({"divergence": {"knid": "kl"}}, ["subnet_trainer_conf.divergence", "knid", "kind"]),
        ({"divergence": "kl"}, ["subnet_trainer_conf.divergence", "kl", "mapping"]),
        ({"random_subnets": 40}, ["random_subnets", "40", "8"]),
        ({"size_weights": {"tiny": 2}}, ["size_weights", "tiny", "full, middle, small"]),
        ({"size_weights": {"small": 2}, "search_space": {"depth": [0.5, 1]}}, ["size_weights", "search_space"]),
        ({"dropout": "none"}, ["dropout", "none", "all, max_only"]),
        ({"search_space": {"width": [0.5, 1]}}, ["search_space", "width", "ffn"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(conf: dict, words: list[str]) -> None:
    model = tiny_model()
    with pytest.raises(UserError) as error:
        build(KDTrainer, conf, "subnet_trainer_conf", model, seed=0)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("make", [conformer, e_branchformer, mh_ssm])
def test_only_the_max_subnet_has_dropout(make: Callable[..., SupernetEncoder]) -> None:
    supernet = make(sizes=SIZES, dropout_rate=0.5, **({"attention_dropout_rate": 0.5} if make is not mh_ssm else {}))
    model, of, found = tiny_model(supernet=supernet).train(), batch(), []
    model.ctc.dropout_rate = 0.5
    model.subnet_trainer = KDTrainer(model, kd_weight=0, dropout="max_only")
    hidden = model.run_subsampling(of)
    for _ in range(2):
        subsampled = replace(hidden, dropout=False)
        found.append([model.run_subnet(subsampled, of, model.encoder.sizes[n]).loss for n in ("small", "middle")])
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    full = model.encoder.sizes["full"]
    assert not torch.equal(model.run_subnet(hidden, of, full).loss, model.run_subnet(hidden, of, full).loss)
    seen: dict[str, bool] = {}
    run_subnet = model.run_subnet
    model.run_subnet = lambda features, batch, subnet, **options: (
        seen.update({subnet.name: features.dropout}) or run_subnet(features, batch, subnet, **options)
    )
    run(model, of)
    assert seen == {"full": True, "middle": False, "small": False}
