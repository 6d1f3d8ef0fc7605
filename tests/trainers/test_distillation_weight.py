"""Distillation waits for its teacher: its weight is a function of the teacher's own loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from espnet_todm.errors import UserError
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.tasks import loss_per_label
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.distillation_weight import DistillationWeight
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, gradients, run, tiny_model, trained_by

START = {"loss_per_label": 1.0, "full_at": 0.5}


def waiting(weight: float = 0.5, **start: float) -> DistillationWeight:
    return DistillationWeight(weight, {**START, **start})


def noted(weight: DistillationWeight, loss: float, labels: int = 10) -> float:
    weight.note(torch.tensor(loss), torch.tensor(labels))
    return float(weight.readiness())


@pytest.mark.parametrize(("loss", "expected"), [(3.0, 0.0), (1.0, 0.0), (0.9, 0.2), (0.6, 0.8), (0.5, 1.0), (0.1, 1.0)])
def test_the_weight_rises_as_the_teachers_loss_falls(loss: float, expected: float) -> None:
    assert noted(waiting(), loss) == pytest.approx(expected, abs=1e-6)


def test_before_the_first_batch_and_on_batches_without_labels_nothing_is_distilled() -> None:
    weight = waiting()
    assert float(weight.readiness()) == 0
    assert noted(weight, 0.0, labels=0) == 0


def test_the_average_is_over_labels_and_recent_steps() -> None:
    weight = waiting(loss_per_label=2.0, full_at=1.0)
    noted(weight, 1.0, labels=30)
    assert noted(weight, 2.0, labels=10) == pytest.approx(1 - 10 / (10 + 0.98 * 30))
    for _ in range(400):
        last = noted(weight, 2.0)
    assert last == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_left_out(bad: float) -> None:
    weight = waiting()
    noted(weight, 0.6)
    before = weight.seen.clone()
    noted(weight, bad)
    assert torch.equal(weight.seen, before)


def test_a_step_mixes_the_losses_with_the_reported_weight() -> None:
    of = batch()
    per_label = float(run(trained_by(kd_weight=0), of)[1]["loss_full"]) * len(of.text) / float(of.text_lengths.sum())
    model = trained_by(kd_weight=0.5, kd_start={"loss_per_label": per_label + 1, "full_at": per_label - 1})
    loss, stats = run(model, of)
    assert float(stats["kd_weight"]) == pytest.approx(0.25)
    students = [0.75 * stats[f"loss_{name}"] + 0.25 * stats[f"kd_{name}"] for name in ("middle", "small")]
    torch.testing.assert_close(loss.detach(), (stats["loss_full"] + sum(students)) / 3)


def test_a_teacher_on_its_plateau_gives_the_gradients_of_no_distillation() -> None:
    of, found = batch(), []
    for conf in ({"kd_weight": 0}, {"kd_weight": 0.5, "kd_start": {"loss_per_label": 0.02, "full_at": 0.01}}):
        torch.manual_seed(0)
        model = trained_by(**conf)
        run(model, of)[0].backward()
        found.append(gradients(model))
    assert all(torch.equal(*pair) for pair in zip(*(grads.values() for grads in found)))


def test_steps_of_the_max_subnet_alone_count() -> None:
    model, of = trained_by(warmup_steps=2, kd_start=START), batch()
    _, stats = run(model, of, 0)
    assert "kd_weight" in stats and float(model.subnet_trainer.distillation.seen[1]) == float(of.text_lengths.sum())


def test_a_checkpoint_has_the_average_and_an_extracted_model_does_not() -> None:
    model, of = trained_by(kd_start=START), batch()
    run(model, of)
    again = trained_by(kd_start=START)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.subnet_trainer.distillation.seen, model.subnet_trainer.distillation.seen)
    assert not [name for name in model.outer_state(model.encoder.sizes["small"]) if "distillation" in name]
    assert not [name for name in trained_by().state_dict() if name.startswith("subnet_trainer.")]


def test_two_stage_training_follows_the_same_rule() -> None:
    model = tiny_model(sizes={"small": 0.6, "middle": 0.8}).train()
    conf: dict[str, Any] = {"kd_weight": 0.5, "stage1_steps": 1}
    model.subnet_trainer = TwoStageTrainer(model, kd_start={"loss_per_label": 0.02, "full_at": 0.01}, **conf)
    loss, stats = run(model, batch())
    model.subnet_trainer = TwoStageTrainer(model, **{**conf, "kd_weight": 0})
    assert float(stats["kd_weight"]) == 0 and torch.equal(loss, run(model, batch())[0])


@pytest.mark.parametrize("ctc_weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("normalised", [False, True])
def test_loss_per_label(ctc_weight: float, normalised: bool) -> None:
    of, options = batch(3), {"length_normalized_loss": normalised} if ctc_weight < 1 else {}
    model = tiny_model(ctc_weight, options).train()
    output = model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["full"])
    ratio = len(of.text) / float(of.text_lengths.sum())
    expected = ctc_weight * float(output.stats.get("loss_ctc", 0.0)) * ratio
    expected += (1 - ctc_weight) * float(output.stats.get("loss_att", 0.0)) * (1.0 if normalised else ratio)
    assert float(loss_per_label(model, output, of)) == pytest.approx(expected)


@pytest.mark.parametrize("prune_range", [0, 3])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.2])
def test_loss_per_label_of_a_transducer(prune_range: int, ctc_weight: float) -> None:
    options = {"prune_range": prune_range, "warmup_steps": 10}
    model, of = transducer(ctc_weight=ctc_weight, model={"transducer_conf": options}), batch(3)
    of = replace(of, context=model.context(5))
    output = model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["full"])
    lattice = float(output.stats["loss_transducer"]) / (0.75 + 0.55 if prune_range else 1)
    expected = (lattice + ctc_weight * float(output.stats.get("loss_ctc", 0.0))) / (1 + ctc_weight)
    got = float(loss_per_label(model, output, of))
    assert got == pytest.approx(expected * len(of.text) / float(of.text_lengths.sum()))


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    wrapped = DistributedDataParallel(trained_by(kd_start={"loss_per_label": 1000.0, "full_at": 0.0}))
    of = batch(seed=rank, utterances=2 + rank)
    loss, stats, _ = wrapped(of.speech, of.speech_lengths, of.text, of.text_lengths, step=0)
    loss.sum().backward()
    torch.save((stats["kd_weight"], wrapped.module.subnet_trainer.distillation.seen), f"{folder}/rank{rank}.pth")
    torch.distributed.destroy_process_group()


def test_ranks_agree_on_the_weight_of_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    (weight, seen), (other_weight, other_seen) = (torch.load(tmp_path / f"rank{n}.pth") for n in (0, 1))
    assert torch.equal(weight, other_weight) and torch.equal(seen, other_seen)
    nats = labels = 0.0
    for rank in (0, 1):
        of = batch(seed=rank, utterances=2 + rank)
        nats += float(run(trained_by(kd_weight=0), of)[1]["loss_full"]) * len(of.text)
        labels += float(of.text_lengths.sum())
    assert seen.tolist() == pytest.approx([nats, labels], rel=1e-5)


def test_the_last_share_of_the_run_only_distils() -> None:
    model, of = trained_by(kd_weight=0.25, kd_only_share=0.3), batch()
    for step, weight in ((0, 0.25), (6, 0.25), (7, 1.0), (9, 1.0)):
        loss, stats = _planned_run(model, of, step, 10)
        assert float(stats["kd_weight"]) == weight
        students = sum(
            (1 - weight) * stats[f"loss_{name}"] + weight * stats[f"kd_{name}"] for name in ("middle", "small")
        )
        torch.testing.assert_close(loss, (stats["loss_full"] + students) / 3)
    with pytest.raises(UserError, match="kd_only_share: the length of the run is not known beforehand"):
        run(model, of)


def test_at_the_end_too_distillation_waits_for_its_teacher() -> None:
    model = trained_by(kd_only_share=0.5, kd_start={"loss_per_label": 0.02, "full_at": 0.01})
    assert float(_planned_run(model, batch(), 9, 10)[1]["kd_weight"]) == 0


def _planned_run(model: TodmModel, of: Any, step: int, planned: int) -> tuple[torch.Tensor, dict[str, Any]]:
    model.subnet_trainer.prepare(model, step, TrainingSetup(planned_steps=planned))
    loss, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=step)
    return loss.detach().sum(), {key: value.squeeze() for key, value in stats.items()}


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"kd_start": {"loss_per_label": 0.5, "full_at": 0.5}}, ["kd_start.full_at: 0.5", "below loss_per_label: 0.5"]),
        ({"kd_start": {"loss_per_label": 0}}, ["kd_start.loss_per_label: 0", "> 0"]),
        ({"kd_start": {"full_at": -1}}, ["kd_start.full_at: -1", ">= 0"]),
        ({"kd_start": {"full_at": "low"}}, ["kd_start.full_at: 'low'", "number"]),
        ({"kd_start": {"begin": 1.0}}, ["kd_start", "begin", "allowed: loss_per_label, full_at"]),
        ({"kd_start": 1.0}, ["kd_start", "1.0", "mapping"]),
        ({"kd_weight": 0, "kd_start": START}, ["kd_start", "kd_weight: 0"]),
        ({"kd_only_share": 1}, ["kd_only_share: 1", "< 1"]),
        ({"kd_only_share": -0.1}, ["kd_only_share: -0.1", ">= 0"]),
    ],
)
def test_wrong_values_end_in_one_clear_line(conf: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        trained_by(**conf)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
