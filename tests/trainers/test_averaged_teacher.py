"""A teacher with averaged weights: what it averages, teaches, and leaves in checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from espnet2.asr.specaug.specaug import SpecAug

from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.averaged_teacher import AveragedTeacher
from espnet_todm.trainers.kd import KDTrainer
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, gradients, run, tiny_model, trained_by

EMA: dict[str, Any] = {"teacher": {"kind": "ema", "decay": 0.9}, "divergence": {"kind": "kl"}}


def train(model: TodmModel, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in steps:
        optimizer.zero_grad()
        run(model, batch(seed=step), step)[0].backward()
        optimizer.step()


def test_the_average_is_that_of_the_weights_before_each_step() -> None:
    model = tiny_model().train()
    teacher, name = AveragedTeacher(model, 0.9), "encoder.encoders.0.feed_forward.w_1.weight"
    expected = None
    for update in range(40):
        with torch.no_grad():
            model.get_parameter(name).add_(0.1)
        teacher.update(model)
        keep = min(0.9, (1 + update) / (10 + update)) if update else 0.0
        weight = model.get_parameter(name).detach()
        expected = weight.clone() if expected is None else keep * expected + (1 - keep) * weight
        torch.testing.assert_close(teacher.model.get_parameter(name).detach(), expected)
    assert teacher.updates == 40


def test_the_averaged_model_teaches_and_the_max_subnet_does_not() -> None:
    model, of = trained_by(**EMA), batch()
    train(model, range(3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    _, stats = run(model, of, 3)
    averaged = tiny_model().eval()
    prefix = "subnet_trainer.teacher."
    model.load_state_dict(state)
    model.subnet_trainer.teacher.update(model)  # as before the step
    averaged.load_state_dict(
        {n[len(prefix):]: v for n, v in model.state_dict().items() if n.startswith(prefix) and n != f"{prefix}updates"}
    )  # fmt: skip
    subsampled = averaged.run_subsampling(of)
    teacher = averaged.run_subnet(subsampled, of, averaged.encoder.sizes["full"]).posteriors.ctc
    student = model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["small"]).posteriors.ctc
    expected = ctc_frame_distillation(teacher, student, subsampled.lengths, Divergence("kl"))
    torch.testing.assert_close(stats["kd_small"], expected.detach())


def test_a_teacher_of_the_present_weights_teaches_as_the_max_subnet_does() -> None:
    of, found = batch(), []
    for conf in ({}, {"teacher": "ema"}, {"teacher": "max"}):
        torch.manual_seed(0)
        model = trained_by(**conf)
        loss, stats = run(model, of)  # in the first step the average has seen one set of weights
        loss.backward()
        found.append((loss.detach(), stats["kd_small"], gradients(model)))
    for loss, kd, grads in found[1:]:
        torch.testing.assert_close((loss, kd), found[0][:2])
        assert all(torch.allclose(grads[name], grad, atol=1e-6) for name, grad in found[0][2].items())


def test_the_optimizer_and_the_model_do_not_see_the_copy() -> None:
    model, plain = trained_by(**EMA), trained_by()
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert not [name for name, _ in model.named_buffers() if name.startswith("subnet_trainer")]
    assert len(model.trained_parameters()) == len(plain.trained_parameters())
    assert model.component_table().cost(model.encoder.sizes["full"]) == plain.component_table().cost(
        plain.encoder.sizes["full"]
    )


def test_a_resumed_training_ends_with_the_same_weights_and_average() -> None:
    model = trained_by(**EMA)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, range(2))
    between = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, range(2, 5))
    again = trained_by(**EMA)
    again.load_state_dict(between)
    train(again, range(2, 5))
    expected, got = model.state_dict(), again.state_dict()
    assert expected.keys() == got.keys() == start.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert int(expected["subnet_trainer.teacher.updates"]) == 5


def test_a_checkpoint_without_the_average_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*subnet_trainer\.teacher\.updates"):
        state = {n: v for n, v in trained_by(**EMA).state_dict().items() if not n.endswith("teacher.updates")}
        trained_by(**EMA).load_state_dict(state)


def test_an_extracted_model_has_no_teacher() -> None:
    model = trained_by(**EMA)
    assert not [name for name in model.outer_state(model.encoder.sizes["small"]) if "teacher" in name]


@pytest.mark.parametrize("prune_range", [0, 3])
def test_transducers_learn_from_the_averaged_lattice(prune_range: int) -> None:
    model = transducer(conf=EMA, model={"transducer_conf": {"prune_range": prune_range}})
    loss, stats = run(model, batch(3))
    loss.backward()
    assert {"kd_middle", "kd_small"} <= stats.keys()
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())


@pytest.mark.parametrize("ctc_weight", [0.3, 0.0])
def test_models_with_attention_learn_from_the_average(ctc_weight: float) -> None:
    model = trained_by(ctc_weight=ctc_weight, **EMA)
    loss, _ = run(model, batch())
    loss.backward()
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())


def test_the_teacher_has_no_dropout_and_sees_the_chunks_of_the_step() -> None:
    seen: list[Any] = []
    model = tiny_model(causal=True, chunk={"frames": [1, 4], "left": [2, 4]}, dropout_rate=0.5).train()
    model.subnet_trainer = KDTrainer(model, **EMA)
    teacher = model.subnet_trainer.teacher
    for owner in (teacher.model, model):
        blocks = owner.encoder.blocks

        def spy(subsampled: Any, *arguments: Any, blocks: Any = blocks, **options: Any) -> Any:
            seen.append((subsampled.visible, blocks(subsampled, *arguments, **options)))
            return seen[-1][1]

        owner.encoder.blocks = spy
    run(model, batch(), 3)
    run(model, batch(), 3)
    passes = len(seen) // 2
    assert torch.equal(seen[0][1], seen[passes][1]) and not torch.equal(seen[1][1], seen[passes + 1][1])
    assert all(torch.equal(visible, seen[0][0]) for visible, _ in seen)


def masking() -> TodmModel:
    masks = SpecAug(apply_time_warp=False, num_freq_mask=1, num_time_mask=1, time_mask_width_range=[5, 20])
    return tiny_model(model={"specaug": masks}).train()


def test_the_teacher_sees_the_specaugment_of_the_max_subnet() -> None:
    model = masking()
    teacher, of = AveragedTeacher(model, 0.9), replace(batch(), context=model.context(3))
    view, other = (teacher.view(model, of, seed, None) for seed in ("0 3", "0 4"))
    assert torch.equal(view(model).hidden, view(teacher.model).hidden)
    assert not torch.equal(view(model).hidden, other(model).hidden)


def test_with_views_the_teacher_sees_that_of_the_max_subnet() -> None:
    model = masking()
    model.subnet_trainer = KDTrainer(model, views={"consistency": 0}, **EMA)
    teacher, of = model.subnet_trainer.teacher, replace(batch(), context=model.context(3))
    full, small = model.encoder.sizes["full"], model.encoder.sizes["small"]
    views = model.subnet_trainer.views.of_step(model, of, 3, [full, small], {})
    seen = teacher.view(model, of, "", views)(teacher.model).hidden
    assert torch.equal(seen, views.of(views.shared, full).hidden)
    assert not torch.equal(seen, views.of(views.shared, small).hidden)
    run(model, batch(), 3)[0].backward()


def test_distillation_waits_for_the_averaged_teacher() -> None:
    model = trained_by(**EMA, warmup_steps=1, kd_start={"loss_per_label": 1000, "full_at": 0})
    assert "kd_weight" not in run(model, batch(), 0)[1]  # only the max subnet trains, the teacher does not run
    loss = float(run(model, batch(), 1)[1]["kd_weight"])
    assert loss == pytest.approx(0.5 * (1 - float(model.subnet_trainer.distillation.seen[0]) / 7 / 1000))


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("mean", ["teacher.kind: 'mean'", "max, ema"]),
        ({"kind": "ema", "decay": 1}, ["teacher.decay: 1", "< 1"]),
        ({"kind": "ema", "decay": 0}, ["teacher.decay: 0", "> 0"]),
        ({"kind": "ema", "dacay": 0.9}, ["teacher", "dacay", "kind, decay"]),
        (3, ["teacher", "3", "mapping"]),
    ],
)
def test_wrong_values_end_in_one_clear_line(teacher: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        trained_by(teacher=teacher)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_training_without_distillation_needs_no_teacher() -> None:
    with pytest.raises(UserError, match="teacher: ema has no effect with kd_weight: 0"):
        trained_by(teacher="ema", kd_weight=0)


def test_views_of_subsampled_frames_are_refused() -> None:
    with pytest.raises(UserError, match=r"teacher: ema needs views\.where: input"):
        trained_by(teacher="ema", views={"where": "subsampled"})
