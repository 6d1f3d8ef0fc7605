"""Views: gradients against one joint graph, memory, waiting, determinism, and what passes ahead must leave alone."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from espnet2.asr.specaug.specaug import SpecAug
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.batch import Batch
from espnet_todm.models.spec_augment import SpecAugmentByLength
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.views import StepViews
from espnet_todm.util.checks import build
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, gradients, run, tiny_model
from tests.trainers.test_engine import assert_same

HALF_READY = torch.tensor([0.75, 1.0])  # nats and labels: half way between the default bounds of 1 and 0.5


def masks() -> SpecAugmentByLength:
    return SpecAugmentByLength(freq_masks=3, freq_width=5, frames_per_time_mask=10, time_width=4)


def viewed(views: dict[str, Any], ctc_weight: float = 1.0, specaug: Any = None, **conf: Any) -> TodmModel:
    """A model whose max subnet is half way to being a teacher."""
    torch.manual_seed(0)
    model = tiny_model(ctc_weight, {"specaug": specaug or masks()}, **conf.pop("encoder", {})).train()
    trainer = model.subnet_trainer = build(KDTrainer, {"views": views, **conf}, "subnet_trainer_conf", model)
    if trainer.views.start is not None:
        trainer.views.start.seen.copy_(HALF_READY)
    return model


def pair_mean(logits: dict[str, Tensor], lengths: Tensor, both_ways: bool) -> Tensor:
    """The mean over pairs of sum_t KL(sg p_i || p_j), averaged over utterances, with autograd's own operations."""
    valid = (torch.arange(next(iter(logits.values())).size(1)) < lengths[:, None]).float()
    names, terms = list(logits), []
    for i, j in permutations(range(len(names)), 2):
        if both_ways or i < j:
            log_p, log_q = (torch.log_softmax(logits[names[k]], -1) for k in (i, j))
            kl = (log_p.exp() * (log_p - log_q)).detach() - (log_q - log_q.detach()) * log_p.exp().detach()
            terms.append((kl.sum(-1) * valid).sum() / len(lengths))
    return torch.stack(terms).mean()


def joint_loss(model: TodmModel, of: Batch, step: int = 0) -> Tensor:
    """What the step should be, in one graph, with a front part of its own for every subnet."""
    trainer = model.subnet_trainer
    options, weight = trainer.views.options, trainer.distillation.weight
    logits: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    of = replace(of, context=model.context(step))
    views = StepViews(options, model, of, f"0 {step}")
    for subnet in trainer.picked(step):
        subsampled = views.of(views.shared, subnet)
        output = model.run_subnet(subsampled, of, subnet)
        logits[subnet.name] = output.posteriors.ctc
        loss = output.loss
        if losses and weight:
            kd = ctc_frame_distillation(
                logits["full"].detach(), output.posteriors.ctc, subsampled.lengths, trainer.divergence
            )
            loss = (1 - weight) * loss + weight * kd
        losses.append(loss)
    alpha = options.consistency * 0.5 * model.ctc_weight
    return torch.stack(losses).mean() + alpha * pair_mean(logits, subsampled.lengths, options.both_ways)


@pytest.mark.parametrize("where", ["input", "subsampled"])
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(
    ("ctc_weight", "kd_weight", "specaug"), [(1.0, 0.0, None), (0.3, 0.4, None), (1.0, 0.4, "warp")]
)
def test_gradients_are_those_of_one_joint_graph(
    where: str, both_ways: bool, ctc_weight: float, kd_weight: float, specaug: Any
) -> None:
    if specaug is not None:
        # The masks of where: subsampled come on top of one SpecAugment, whose draws are those of torch's generator.
        specaug = SpecAug(time_warp_window=5, freq_mask_width_range=(0, 8), time_mask_width_range=(0, 12))
    conf = {"where": where, "both_ways": both_ways, "consistency": 0.7}
    model = viewed(conf, ctc_weight, specaug, kd_weight=kd_weight)
    torch.manual_seed(1)
    expected_loss = joint_loss(model, batch(frames=120))  # a batch each: ESPnet's SpecAugment changes its input
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(1)
    loss, stats = run(model, batch(frames=120))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected_loss.detach())
    assert_same(gradients(model), expected)
    assert ("consistency_full" in stats) == both_ways and float(stats["consistency_small"]) > 0


def test_the_ctc_beside_a_transducer_is_compared_with_its_weight() -> None:
    """A lattice is compared by distillation only."""
    pytest.importorskip("torchaudio")
    conf = {"views": {"consistency": 0.7}, "kd_weight": 0.0}
    model = transducer(ctc_weight=0.1, conf=conf, model={"specaug": masks(), "transducer_conf": {"prune_range": 3}})
    model.subnet_trainer.views.start.seen.copy_(HALF_READY)
    loss, stats = run(model, batch())
    loss.backward()
    names = ("full", "middle", "small")
    task = sum(float(stats[f"loss_{name}"]) for name in names) / 3
    pull = 0.35 * 0.1 * sum(float(stats[f"consistency_{name}"]) for name in names) / 3
    assert float(loss.detach()) == pytest.approx(task + pull, rel=1e-5) and pull > 0
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values() if gradient is not None)


def test_a_loss_weight_leaves_the_consistency_alone() -> None:
    losses, terms = [], []
    for weights in (None, {"small": 3.0}):
        model = viewed({"consistency": 0.7}, size_weights=weights)
        loss, stats = run(model, batch())
        by_size = [(weights or {}).get(name, 1.0) for name in ("full", "middle", "small")]
        tasks = [float(stats[f"loss_{name}"]) for name in ("full", "middle", "small")]
        kds = [
            tasks[0],
            *(0.5 * task + 0.5 * float(stats[f"kd_{n}"]) for n, task in zip(("middle", "small"), tasks[1:])),
        ]
        losses.append(float(loss.detach()) - sum(w * x for w, x in zip(by_size, kds)) / sum(by_size))
        terms.append(0.35 * sum(float(stats[f"consistency_{name}"]) for name in ("full", "middle", "small")) / 3)
    assert losses[0] > 0 and losses == pytest.approx(terms, rel=1e-4)


def test_a_loss_weight_of_0_leaves_the_consistency_alone() -> None:
    model, of = viewed({}, moving_weight=[0.0, 0.7]), batch()
    model.subnet_trainer.prepare(model, 0, TrainingSetup(planned_steps=10))
    loss, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=0)
    loss.sum().backward()
    pulls = sum(stats[f"consistency_{name}"] for name in ("full", "middle", "small")) / 3
    torch.testing.assert_close(loss.detach(), stats["loss_full"] + stats["consistency_weight"] * pulls)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values() if gradient is not None)


def test_subnets_see_different_views_that_are_the_same_after_a_resume() -> None:
    seen: list[dict[str, Tensor]] = []
    for step in (3, 4, 3):
        torch.manual_seed(len(seen))  # the state of the generator plays no part
        model = viewed({})
        of = replace(batch(), context=model.context(step))
        views = StepViews(model.subnet_trainer.views.options, model, of, f"0 {step}")
        seen.append({name: views.of(views.shared, subnet).hidden for name, subnet in model.encoder.sizes.items()})
    for name in seen[0]:
        assert torch.equal(seen[0][name], seen[2][name]) and not torch.equal(seen[0][name], seen[1][name])
    assert not any(torch.equal(seen[0][a], seen[0][b]) for a, b in permutations(seen[0], 2))


def test_no_earlier_activations_are_in_memory() -> None:
    """At the start of each pass, none of another pass is alive: neither of a block nor of the input layer."""
    model, of = viewed({"where": "input"}), batch()
    alive_at_start: list[int] = []
    seen: list[weakref.ref[Tensor]] = []

    def begins(*_: Any) -> None:
        gc.collect()
        alive_at_start.append(sum(ref() is not None for ref in seen))

    watched = [model.encoder.embed.conv, *(block.feed_forward for block in model.encoder.encoders)]
    hooks = [layer.register_forward_hook(lambda _m, _i, output: seen.append(weakref.ref(output))) for layer in watched]
    hooks.append(model.encoder.embed.register_forward_pre_hook(begins))
    loss, _ = run(model, of)
    for hook in hooks:
        hook.remove()
    assert alive_at_start == [0] * 5 and not any(ref() is not None for ref in seen)  # two passes ahead, three proper
    assert loss.requires_grad


def test_the_consistency_waits_for_the_max_subnet() -> None:
    """Until the max subnet's loss is below the bound, a step is that of views without consistency, with no pass ahead."""
    model, of = viewed({}), batch()
    model.subnet_trainer.views.start.seen.zero_()
    plain = viewed({"consistency": 0})
    passes = count_input_layers(model)
    (loss, stats), (expected, _) = run(model, of), run(plain, of)
    assert torch.equal(loss, expected) and not any(f"consistency_{name}" in stats for name in model.encoder.sizes)
    assert stats["consistency_weight"] == 0
    assert passes == [3]
    nats, labels = model.subnet_trainer.views.start.seen.tolist()
    assert labels == float(of.text_lengths.sum())
    assert nats == pytest.approx(float(stats["loss_full"]) * len(of.text), rel=1e-5)
    model.subnet_trainer.views.start.seen.copy_(torch.tensor([1.0, 10.0]))
    passes[0] = 0
    _, stats = run(model, of)
    assert "consistency_small" in stats and passes == [5]
    assert float(stats["consistency_weight"]) == pytest.approx(0.2)


def test_a_measured_step_has_its_passes_ahead() -> None:
    model, of = viewed({}), batch()
    model.subnet_trainer.views.start.seen.zero_()
    expected, _ = run(model, of)
    (step,) = model.subnet_trainer.walk_through(model)
    passes = count_input_layers(model)
    loss, _ = run(model, of, step)
    assert passes == [5] and torch.equal(loss, expected)


def count_input_layers(model: TodmModel) -> list[int]:
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    model.encoder.embed.register_forward_pre_hook(add)
    return count


def test_bounds_of_the_wait_are_those_of_kd_start() -> None:
    for kd_weight in (0.0, 0.5):
        model = viewed({}, kd_weight=kd_weight, kd_start={"loss_per_label": 2.0, "full_at": 0.5})
        assert float(model.subnet_trainer.views.start.readiness()) == pytest.approx((2 - 0.75) / 1.5)
        assert (model.subnet_trainer.distillation.start is None) == (kd_weight == 0)
    with pytest.raises(UserError, match="kd_start: has no effect"):
        viewed({"consistency": 0}, kd_weight=0, kd_start={})


def test_what_decides_is_in_the_checkpoint() -> None:
    model, of = viewed({}), batch()
    run(model, of)
    resumed = viewed({})
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(run(model, of, 1)[0], run(resumed, of, 1)[0])


def test_passes_ahead_change_neither_statistics_nor_the_generator() -> None:
    encoder = {"conv_norm": "batch_norm", "dropout_rate": 0.1}
    states = []
    for both_ways in (True, False):
        model = viewed({"both_ways": both_ways}, encoder=encoder)
        torch.manual_seed(5)
        run(model, batch())
        states.append((torch.rand(1), {name: value.clone() for name, value in model.encoder.named_buffers()}))
    assert torch.equal(states[0][0], states[1][0])
    assert all(torch.equal(value, states[1][1][name]) for name, value in states[0][1].items())


def test_gradients_under_autocast_around_the_model() -> None:
    """Autocast keeps weights that it has cast; those of passes ahead have no gradient."""
    model, of = viewed({}), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = run(model, of)
    loss.backward()
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(model).values())


def test_views_without_consistency_distil() -> None:
    loss, stats = run(viewed({"consistency": 0}), batch())
    parts = [0.5 * stats[f"loss_{name}"] + 0.5 * stats[f"kd_{name}"] for name in ("middle", "small")]
    torch.testing.assert_close(loss.detach(), (stats["loss_full"] + parts[0] + parts[1]) / 3)
    assert not any(key.startswith("consistency") for key in stats)


def test_the_warm_up_has_a_view_and_nothing_to_compare() -> None:
    loss, stats = run(viewed({}, warmup_steps=2), batch())
    torch.testing.assert_close(loss.detach(), stats["loss_full"])


def test_cost_counts_front_parts_and_passes_ahead() -> None:
    costs = {}
    for where in ("input", "subsampled"):
        for consistency in (0.0, 0.2):
            model = viewed({"where": where, "consistency": consistency})
            table = model.component_table()
            costs[where, consistency] = model.subnet_trainer.model_steps(table, 10)
    plain = tiny_model().train()
    plain.subnet_trainer = KDTrainer(plain)
    full, front = table.cost(table.full()).flops, table.rest.flops
    own = sum(table.cost(model.encoder.sizes[name]).flops - front for name in ("middle", "small"))
    base = plain.subnet_trainer.model_steps(table, 10)
    assert costs["subsampled", 0.0] == base
    assert costs["subsampled", 0.2] == pytest.approx(base + 10 * own / 3 / full)
    assert costs["input", 0.0] == pytest.approx(base + 10 * 2 * front / full)
    assert costs["input", 0.2] == pytest.approx(base + 10 * (2 * front + (own + 2 * front) / 3) / full)


def test_agreement_of_own_fronts_is_that_of_their_parameters() -> None:
    _, stats = run(viewed({}, agreement_every=1), batch())
    assert -1 <= float(stats["agreement_front_small"]) <= 1


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"views": {"where": "output"}}, ["views.where", "output", "input, subsampled"]),
        ({"views": {"consistency": -0.1}}, ["views.consistency", "-0.1", ">= 0"]),
        ({"views": {"both_ways": "yes"}}, ["views.both_ways", "yes", "true or false"]),
        ({"views": {"consistancy": 1}}, ["views", "consistancy", "consistency"]),
        ({"views": {"mask_width": 3}}, ["views.mask_width", "3", "subsampled"]),
        ({"views": {"where": "subsampled", "mask_width": 0}}, ["views.mask_width", "0", ">= 1"]),
        ({"views": "input"}, ["views", "input", "mapping"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(conf: dict, words: list[str]) -> None:
    model = tiny_model(model={"specaug": masks()})
    with pytest.raises(UserError) as error:
        build(KDTrainer, conf, "subnet_trainer_conf", model)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("specaug", [None, SpecAug(apply_freq_mask=False, apply_time_mask=False)])
def test_views_need_something_to_differ_in(specaug: Any) -> None:
    model = tiny_model(model={"specaug": specaug})
    with pytest.raises(UserError, match=r"views.where: 'input' needs a SpecAugment with masks"):
        KDTrainer(model, views={})
    KDTrainer(model, views={"where": "subsampled"})


def test_consistency_needs_a_ctc_output() -> None:
    model = tiny_model(0.0, {"specaug": masks()})
    with pytest.raises(UserError, match=r"views.consistency: 0.2 needs a CTC output, but ctc_weight is 0"):
        KDTrainer(model, views={})
    assert KDTrainer(model, views={"consistency": 0}).views is not None
