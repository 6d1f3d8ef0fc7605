"""The sequential step against one joint autograd graph: values, scaling, accumulation, DistributedDataParallel, memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Callable, Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.batch import Batch
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.engine import Pass, sequential_step
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.util.compat import autocasts_on_cpu
from tests.tiny_model import batch, gradients, run, tiny_model, trained_by

Gradients = dict[str, Optional[Tensor]]
few = settings(max_examples=15, deadline=None)
scaler_on_cpu = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="torch before 2.3 scales gradients on GPUs only"
)


def joint_loss(model: TodmModel, of: Batch, step: int = 0) -> Tensor:
    """What KDTrainer's step should be, as one sum in one graph, with a front part of its own for every subnet."""
    trainer = model.subnet_trainer
    subnets = trainer.sandwich.pick(step)
    teacher, losses = None, []
    for subnet in subnets:
        subsampled = model.run_subsampling(of)
        output = model.run_subnet(subsampled, of, subnet)
        if teacher is None or not trainer.distillation.weight:
            losses.append(output.loss)
        else:
            kd = ctc_frame_distillation(teacher, output.posteriors.ctc, subsampled.lengths, trainer.divergence)
            losses.append((1 - trainer.distillation.weight) * output.loss + trainer.distillation.weight * kd)
        if teacher is None:
            teacher = output.posteriors.ctc.detach()
    return torch.stack(losses).mean()


def assert_same(got: Gradients, expected: Gradients, tolerance: float = 1e-6) -> None:
    """Equal to ``tolerance`` of the largest gradient of all; the same parameters without any."""
    assert {n for n, g in got.items() if g is None} == {n for n, g in expected.items() if g is None}
    scale = max(1.0, *(float(g.abs().max()) for g in expected.values() if g is not None))
    for name, gradient in expected.items():
        if gradient is not None:
            difference = float((got[name] - gradient).abs().max())
            assert difference <= tolerance * scale, f"{name}: {difference} of {scale}"


@few
@given(kd_weight=st.sampled_from([0.0, 0.3, 1.0]), step=st.integers(0, 50), seed=st.integers(0, 100))
@pytest.mark.parametrize("ctc_weight", [1.0, 0.3])
def test_gradients_are_those_of_one_joint_graph(ctc_weight: float, kd_weight: float, step: int, seed: int) -> None:
    model = trained_by(ctc_weight=ctc_weight, kd_weight=kd_weight)
    of = batch(seed=seed)
    expected_loss = joint_loss(model, of, step)
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    loss, _ = run(model, of, step)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected_loss.detach())
    assert_same(gradients(model), expected)


@few
@given(seed=st.integers(0, 1000), passes=st.integers(1, 4), loss_scale=st.sampled_from([1.0, 0.5, 1024.0]))
def test_any_functions_of_shared_and_own_parameters(seed: int, passes: int, loss_scale: float) -> None:
    """Sums, where autograd hands the same gradient, or a view without memory, to several parameters, are among them."""
    torch.manual_seed(seed)
    a, b, c, unused = (nn.Parameter(torch.randn(3)) for _ in range(4))
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda hidden: (hidden * (a + b)).square().sum(),
        lambda hidden: (a + b).sum(),
        lambda hidden: (a + b + c + hidden).sum(),
        lambda hidden: hidden.sum() * c.prod(),
    ]
    chosen = [functions[(seed + i) % 4] for i in range(passes)]
    weights = [0.5 + i for i in range(passes)]
    factor = 3.0
    x = torch.randn(3)

    def front() -> Tensor:
        return x * a

    parameters = [a, b, c, unused]
    total = torch.stack([w * f(front()) for w, f in zip(weights, chosen)]).sum()
    expected = torch.autograd.grad(factor * total, parameters, allow_unused=True)
    parts = [lambda shared, w=w, f=f: w * f(shared.hidden) for w, f in zip(weights, chosen)]  # type: ignore[misc]
    loss = sequential_step(_front(front()), parts, parameters, loss_scale)
    torch.testing.assert_close(loss.detach(), total.detach())
    (factor * loss).backward()
    for got, want in zip(parameters, expected):
        if want is None:
            assert got.grad is None
        else:
            torch.testing.assert_close(got.grad, want)


def _front(hidden: Tensor) -> SubsampledFeatures:
    return SubsampledFeatures(hidden, None, torch.tensor([1]), torch.ones(1, 1, 1, dtype=torch.bool))


def test_frozen_front_part_gets_no_gradient() -> None:
    model = trained_by()
    model.encoder.embed.requires_grad_(False)
    loss, _ = run(model, batch())
    loss.backward()
    assert all(p.grad is None for p in model.encoder.embed.parameters())
    assert model.ctc.ctc_lo.weight.grad is not None


def test_what_no_subnet_reaches_gets_none() -> None:
    model = trained_by()
    everything, small = model.encoder.component_table().full(), model.encoder.sizes["small"]
    of = batch()
    part: Pass[SubsampledFeatures] = lambda subsampled: model.run_subnet(subsampled, of, small).loss  # noqa: E731
    sequential_step(model.run_subsampling(of), [part], model.trained_parameters()).backward()
    kept = set(small.layers)
    for layer in everything.layers:
        has = [p.grad is not None for p in model.encoder.encoders[layer].parameters()]
        assert all(has) if layer in kept else not any(has)


def test_accumulation_over_micro_batches_adds_up() -> None:
    model = trained_by()
    single: list[Gradients] = []
    for seed in (0, 1):
        model.zero_grad()
        (run(model, batch(seed=seed))[0] / 2).backward()
        single.append(gradients(model))
    model.zero_grad()
    for seed in (0, 1):
        (run(model, batch(seed=seed))[0] / 2).backward()
    assert_same(gradients(model), {name: single[0][name] + single[1][name] for name in single[0]})


def test_loss_scale_changes_nothing() -> None:
    model, results = trained_by(), []
    for scale in (1.0, 1024.0):
        model.zero_grad()
        run(model, batch(), loss_scale=scale)[0].backward()
        results.append(gradients(model))
    assert_same(results[1], results[0])


@scaler_on_cpu
def test_gradient_scaler_sees_scaled_gradients_and_steps_alike() -> None:
    """As ESPnet drives it: the scaler multiplies the loss, divides the gradients, and the optimizer steps on the rest."""
    weights = []
    for scaled in (False, True):
        model = trained_by()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        loss = run(model, batch(), loss_scale=scaler.get_scale())[0]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        assert torch.isfinite(norm)
        scaler.step(optimizer)
        weights.append({name: p.detach() for name, p in model.named_parameters()})
    assert_same(weights[1], weights[0])


@scaler_on_cpu
def test_infinite_gradients_reach_the_scaler() -> None:
    model = trained_by()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.scale(run(model, batch(), loss_scale=scaler.get_scale())[0]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 3e38
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_earlier_subnets_are_forgotten_before_the_next_runs() -> None:
    model, of = tiny_model().train(), batch()
    activations: list[weakref.ref[Tensor]] = []
    alive_at_start: list[int] = []

    def run_one(subsampled: SubsampledFeatures, name: str) -> Tensor:
        gc.collect()
        alive_at_start.append(sum(ref() is not None for ref in activations))
        output = model.run_subnet(subsampled, of, model.encoder.sizes[name])
        activations.append(weakref.ref(output.posteriors.ctc))
        return output.loss

    seen: list[weakref.ref[Tensor]] = []
    hooks = [
        block.feed_forward.register_forward_hook(lambda _m, _i, output: seen.append(weakref.ref(output)))
        for block in model.encoder.encoders
    ]
    parts = [lambda subsampled, name=name: run_one(subsampled, name) for name in model.encoder.sizes]  # type: ignore[misc]
    loss = sequential_step(model.run_subsampling(of), parts, model.trained_parameters())
    for hook in hooks:
        hook.remove()
    assert alive_at_start == [0, 0, 0]
    assert seen and not any(ref() is not None for ref in seen)
    assert loss.requires_grad


@pytest.mark.skipif(not autocasts_on_cpu(torch.bfloat16), reason="this torch cannot autocast norms on a CPU")
def test_bfloat16_autocast_is_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espnet_todm.models.autocast.cpu_has", lambda dtype: True)
    results = []
    for autocast in (None, "bfloat16"):
        model = tiny_model(model={"autocast": autocast}).train()
        model.subnet_trainer = trained_by().subnet_trainer
        loss, _ = run(model, batch())
        loss.backward()
        assert loss.dtype == torch.float32
        results.append((float(loss.detach()), gradients(model)))
    (exact, exact_grads), (rough, rough_grads) = results
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact
    flat = [torch.cat([g.flatten() for g in grads.values()]) for grads in (exact_grads, rough_grads)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


MICRO_BATCHES = (1, 1, 2, 1)  # of each step


def _ddp_worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    wrapped = DistributedDataParallel(trained_by())
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for step, accumulate in enumerate(MICRO_BATCHES):
        optimizer.zero_grad()
        for micro in range(accumulate):
            of = batch(seed=_seed(rank, step, micro))
            loss = wrapped(of.speech, of.speech_lengths, of.text, of.text_lengths, step=step)[0]
            (loss.sum() / accumulate).backward()
        torch.save(gradients(wrapped.module), Path(folder) / f"rank{rank}_step{step}.pth")
        optimizer.step()
    torch.distributed.destroy_process_group()


def _seed(rank: int, step: int, micro: int) -> int:
    return 100 * rank + 10 * step + micro


def test_distributed_gradients_are_the_mean_over_ranks(tmp_path: Path) -> None:
    """Default flags, several steps in a row, one of them with accumulation; compared with one process that sees all."""
    world = 2
    torch.multiprocessing.spawn(_ddp_worker, (world, str(tmp_path)), nprocs=world)
    model = trained_by()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, accumulate in enumerate(MICRO_BATCHES):
        optimizer.zero_grad()
        for rank in range(world):
            for micro in range(accumulate):
                (run(model, batch(seed=_seed(rank, step, micro)), step)[0] / (accumulate * world)).backward()
        for rank in range(world):
            got = torch.load(tmp_path / f"rank{rank}_step{step}.pth", weights_only=True)
            assert_same(got, gradients(model))
        optimizer.step()


def test_distributed_training_leaves_alone_what_no_subnet_reaches(tmp_path: Path) -> None:
    """The trainer wraps a supernet like this. Without the option, DistributedDataParallel makes zeros."""
    found = []
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for finds in (True, False):
            wrapped = DistributedDataParallel(trained_by(SingleTrainer, size="small"), find_unused_parameters=finds)
            of = batch()
            wrapped(of.speech, of.speech_lengths, of.text, of.text_lengths, step=0)[0].sum().backward()
            found.append(gradients(wrapped.module))
    finally:
        torch.distributed.destroy_process_group()
    model = trained_by(SingleTrainer, size="small")
    run(model, batch())[0].backward()
    assert_same(found[0], gradients(model))
    unreached = [name for name, gradient in found[0].items() if gradient is None]
    assert unreached and all(float(found[1][name].abs().max()) == 0 for name in unreached)  # type: ignore[union-attr]
