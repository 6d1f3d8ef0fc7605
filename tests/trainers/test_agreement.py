"""Gradient agreement against cosines computed by hand, for slices and gates; it does not change the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.agreement import THIRDS, AgreementOfStep
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.tiny_model import batch, gradients, run, tiny_model, trained_by
from tests.trainers.epochs import batches, train_epoch


def cosine(ours: list[Tensor], largest: list[Tensor]) -> float:
    flat = [torch.cat([x.flatten() for x in tensors]).double() for tensors in (ours, largest)]
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))


def separate_gradients(model: TodmModel, name: str) -> dict[str, Tensor]:
    """Of one subnet's whole loss in a graph of its own; ``hidden``: the gradient at the subsampled features."""
    of, trainer = batch(), model.subnet_trainer
    subsampled = model.run_subsampling(of)
    leaf = subsampled.hidden.detach().requires_grad_()
    subsampled = subsampled.with_hidden(leaf)
    output = model.run_subnet(subsampled, of, model.encoder.sizes[name])
    loss = output.loss
    if name != "full":
        teacher = model.run_subnet(subsampled, of, model.encoder.sizes["full"]).posteriors.ctc.detach()
        kd = ctc_frame_distillation(teacher, output.posteriors.ctc, subsampled.lengths, trainer.divergence)
        loss = (1 - trainer.distillation.weight) * loss + trainer.distillation.weight * kd
    named = {"hidden": leaf, **dict(model.named_parameters())}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {key: gradient for key, gradient in zip(named, found) if gradient is not None}


def test_cosines_of_slices_are_those_computed_by_hand() -> None:
    """The rows and columns that the small size keeps are taken out by its keep indices."""
    model = trained_by(agreement_every=1)
    small = model.encoder.sizes["small"]
    ours, largest = separate_gradients(model, "small"), separate_gradients(model, "full")
    _, stats = run(model, batch())
    kept_ours, kept_largest = [], []
    for layer, modules in small.layers.items():
        block, of = model.encoder.encoders[layer], f"encoder.encoders.{layer}."
        chunk = block.feed_forward.w_1.out_features // block.feed_forward.components
        units = torch.cat([torch.arange(i * chunk, (i + 1) * chunk) for i in modules["feed_forward"]])
        assert len(units) < block.feed_forward.w_1.out_features
        for grads, kept in ((ours, kept_ours), (largest, kept_largest)):
            kept += [grads[f"{of}feed_forward.w_1.{name}"][units] for name in ("weight", "bias")]
            kept += [grads[f"{of}feed_forward.w_2.weight"][:, units], grads[f"{of}feed_forward.w_2.bias"]]
            kept += [grads[f"{of}norm_ff.{name}"] for name in ("weight", "bias")]
    assert float(stats["agreement_feed_forward_small"]) == pytest.approx(cosine(kept_ours, kept_largest), abs=1e-5)
    behind = [n for n in ours if n.startswith(("encoder.after_norm", "ctc"))]
    by_hand = cosine([ours[n] for n in behind], [largest[n] for n in behind])
    assert float(stats["agreement_output_small"]) == pytest.approx(by_hand, abs=1e-5)
    by_hand = cosine([ours["hidden"]], [largest["hidden"]])
    assert float(stats["agreement_front_small"]) == pytest.approx(by_hand, abs=1e-5)


def test_parts_are_modules_and_thirds_of_the_depth() -> None:
    model = trained_by(agreement_every=1)
    _, stats = run(model, batch())
    modules = {"self_attn", "feed_forward", "feed_forward_macaron", "conv_module"}
    expected = set()
    for size in ("middle", "small"):
        kept = {third for layer, third in enumerate(THIRDS) if layer in model.encoder.sizes[size].layers}
        expected |= {f"agreement_{part}_{size}" for part in ("all", "front", "output", *modules, *kept)}
    found = {key: float(value) for key, value in stats.items() if key.startswith("agreement")}
    assert found.keys() == expected and all(-1 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("make", [KDTrainer, TwoStageTrainer])
def test_measuring_changes_neither_loss_nor_gradients(make: Any) -> None:
    results = []
    for every in (0, 2):
        torch.manual_seed(0)
        model = tiny_model(sizes={"small": 0.6, "middle": 0.8}).train()
        conf = {"stage1_steps": 10} if make is TwoStageTrainer else {}
        model.subnet_trainer = make(model, agreement_every=every, **conf)
        loss, stats = run(model, batch(), step=2)
        loss.backward()
        results.append((loss.detach(), gradients(model)))
        assert any(key.startswith("agreement_all_") for key in stats) == bool(every)
        assert not any(key.startswith("agreement") for key in run(model, batch(), step=1)[1])
    (plain, without), (measured, with_log) = results
    assert torch.equal(plain, measured)
    assert all(torch.equal(without[name], with_log[name]) for name in without if without[name] is not None)


def test_an_epoch_reports_the_mean_over_measured_steps() -> None:
    model = trained_by(agreement_every=2)
    reporter = train_epoch(model, batches(False, False, False), torch.optim.SGD(model.parameters(), lr=0.0))
    expected = []
    for number in (0, 2):
        of = batch(seed=number)
        expected.append(float(run(model, of, number)[1]["agreement_all_small"]))
    assert reporter.get_value("train", "agreement_all_small") == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_a_gradient_of_zeros_has_no_cosine_and_more_passes_are_ignored() -> None:
    stats: dict[str, Any] = {}
    observe = AgreementOfStep([("all",), ("all", "x"), ("y",)], ["full", "small"], stats)
    observe(0, [torch.tensor([3.0, 4.0, 9.0]), torch.tensor([1.0]), None])
    observe(1, [torch.tensor([4.0, 3.0, 0.0]), torch.tensor([0.0]), torch.tensor([1.0])])
    observe(2, [torch.tensor([1.0, 1.0, 1.0]), None, None])
    assert set(stats) == {"agreement_all_small", "agreement_x_small"}
    assert float(stats["agreement_all_small"]) == pytest.approx(24 / 25)
    assert math.isnan(float(stats["agreement_x_small"]))


@pytest.mark.parametrize("every", [-1, 0.5, True, "often"])
def test_a_bad_interval_is_named_with_its_value(every: Any) -> None:
    with pytest.raises(UserError, match=f"agreement_every: {every!r} is not allowed"):
        trained_by(agreement_every=every)
