"""The state space layer against its definition: one step of the recurrence after another, in double precision."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from espnet2.torch_utils.initialize import initialize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from espnet_todm.deploy.onnx.state_space import OnnxStateSpace
from espnet_todm.elastic.state_space import (
    ElasticStateSpace,
    convolve,
    frequencies,
    state_space_kernel,
)
from espnet_todm.optim.scaled_adam import ScaledAdam
from tests.conftest import disturb

few = settings(max_examples=15, deadline=None)
SIZE = 6


def layer(**options: Any) -> ElasticStateSpace:
    torch.manual_seed(0)
    made = ElasticStateSpace(
        **{"size": SIZE, "heads": 4, "head_dim": 3, "activation": nn.SiLU(), "state": 8, **options}
    )
    disturb(made)
    return made.eval()


def everywhere(frames: int, batch: int = 1) -> Tensor:
    return torch.ones(batch, 1, frames, dtype=torch.bool)


def recurrence(module: ElasticStateSpace, signal: Tensor, direction: int) -> Tensor:
    """signal (B, C, T) -> (B, C, T): the first stage's state spaces by zero-order hold, frame after frame."""
    step, skip = 10 ** (module.log_step[0].double() - 2), module.skip[0, :, direction].double()
    frequency = module.frequency[0].double() * 3 * math.pi  # 4 pairs: 0, pi, 2 pi, 3 pi
    transition = torch.complex(-module.log_decay[0].exp().double(), frequency)  # (C, M)
    parts = module.coefficients[0, :, direction].double()
    output = torch.complex(parts[:, 0::2], parts[:, 1::2])
    kept = torch.exp(step.unsqueeze(-1) * transition)
    entry = (kept - 1) / transition
    state, outputs = torch.zeros(len(signal), *transition.shape, dtype=torch.complex128), []
    for u in signal.double().unbind(-1):
        state = kept * state + entry * u.unsqueeze(-1)
        outputs.append(2 * (output * state).sum(-1).real + skip * u)
    return torch.stack(outputs, -1)


@few
@given(frames=st.integers(1, 40), batch=st.integers(1, 3))
def test_a_layer_is_its_recurrences_in_both_directions(frames: int, batch: int) -> None:
    module, x = layer(), torch.randn(batch, frames, SIZE)
    signal = module.linear_in(x).transpose(1, 2)
    forward = recurrence(module, signal, 0)
    back = recurrence(module, signal.flip(-1), 1).flip(-1)
    both = nn.functional.silu(torch.stack([forward, back], 2)).float()  # (B, C, 2, T)
    heads = both.view(batch, 4, 6, frames)
    mixed = torch.einsum("hoi,bhit->bhot", module.mix_weight[0], heads) + module.mix_bias[0].view(1, 4, 3, 1)
    gated = torch.cat([mixed[:, 0] * nn.functional.silu(mixed[:, 1]), mixed[:, 2] * nn.functional.silu(mixed[:, 3])], 1)
    expected = module.linear_out(gated.transpose(1, 2))
    torch.testing.assert_close(module(x, everywhere(frames)), expected, atol=1e-5, rtol=1e-4)


@few
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    gating=st.booleans(),
    stack=st.integers(1, 2),
    kept=st.sampled_from([None, (1,)]),
)
@torch.no_grad()
def test_chunk_by_chunk_is_the_same_as_all_at_once(counts: list[int], gating: bool, stack: int, kept: Any) -> None:
    """For the layer, and for what a runtime gets of a layer that keeps all."""
    module = layer(gating=gating, stack=stack, bidirectional=False)
    forms: list[ElasticStateSpace] = [module, *([OnnxStateSpace(copy.deepcopy(module))] if kept is None else [])]
    x = torch.randn(2, sum(counts), SIZE)
    expected = module(x, everywhere(sum(counts), 2), kept)
    for form in forms:
        state, outputs = torch.zeros(2, form.stream_width(len(kept or range(form.components)))), []
        for piece in x.split(counts, dim=1):
            output, state = form.stream(piece, state, kept)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs, 1), expected, atol=1e-4, rtol=1e-4)


def test_long_utterances_stay_exact_in_float32() -> None:
    """At 8000 frames as in double precision: no power of a rounded power."""
    frames, step = 8000, torch.tensor([0.001, 0.003, 0.1])
    pairs = torch.complex(-torch.full((3, 8), 0.5), frequencies(16, "lin").expand(3, 8))
    output = torch.randn(3, 1, 8, dtype=torch.complex64)
    log_transition = step.unsqueeze(-1) * pairs
    kernel = state_space_kernel(log_transition, output, frames)
    exact = state_space_kernel(log_transition.to(torch.complex128), output.to(torch.complex128), frames)
    assert (kernel - exact).abs().max() < 1e-4 * exact.abs().max()


@few
@given(frames=st.integers(1, 30))
def test_a_kernel_is_the_sum_of_powers(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    log_transition, output = (
        torch.randn(*shape, dtype=torch.complex128, generator=generator) for shape in ((3, 2), (3, 2, 2))
    )
    log_transition = torch.complex(-log_transition.real.abs(), log_transition.imag)
    lags = torch.arange(frames)
    powers = torch.exp(log_transition.unsqueeze(-1) * lags)  # (C, M, T)
    expected = 2 * torch.einsum("crm,cmt->crt", output, powers).real
    torch.testing.assert_close(state_space_kernel(log_transition, output, frames), expected)


@few
@given(frames=st.integers(1, 30), directions=st.integers(1, 2))
def test_convolution_looks_back_and_correlation_ahead(frames: int, directions: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    signal = torch.randn(2, 3, frames, generator=generator, dtype=torch.float64)
    kernels = torch.randn(3, directions, frames, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, 3, directions, frames, dtype=torch.float64)
    for t in range(frames):
        for lag in range(frames):
            if t - lag >= 0:
                expected[:, :, 0, t] += kernels[:, 0, lag] * signal[:, :, t - lag]
            if directions == 2 and t + lag < frames:
                expected[:, :, 1, t] += kernels[:, 1, lag] * signal[:, :, t + lag]
    torch.testing.assert_close(convolve(signal, kernels), expected)


def test_gradients_are_those_of_finite_differences() -> None:
    log_transition = torch.complex(-0.1 - torch.rand(2, 2), torch.randn(2, 2)).to(torch.complex128).requires_grad_()
    output = torch.randn(2, 2, 2, dtype=torch.complex128, requires_grad=True)
    signal = torch.randn(1, 2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, c, u: convolve(u, state_space_kernel(a, c, 7)), (log_transition, output, signal)
    )


@few
@given(frames=st.integers(2, 30), data=st.data())
def test_a_causal_layer_does_not_look_ahead(frames: int, data: st.DataObject) -> None:
    module, first = layer(bidirectional=False, stack=2), data.draw(st.integers(1, frames - 1))
    x = torch.randn(1, frames, SIZE)
    changed = x.clone()
    changed[:, first:] += 3.0
    before, after = module(x, everywhere(frames)), module(changed, everywhere(frames))
    torch.testing.assert_close(before[:, :first], after[:, :first], atol=1e-5, rtol=1e-5)
    assert (before[:, first:] - after[:, first:]).abs().amax(-1).min() > 1e-4
    both = layer(stack=2)
    assert (both(x, everywhere(frames)) - both(changed, everywhere(frames)))[:, 0].abs().max() > 1e-5


@few
@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=4), bidirectional=st.booleans())
def test_padding_of_any_value_changes_nothing(lengths: list[int], bidirectional: bool) -> None:
    module, frames = layer(bidirectional=bidirectional, stack=2), max(lengths)
    mask = (torch.arange(frames) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1)
    x = torch.randn(len(lengths), frames, SIZE).masked_fill(~mask.transpose(1, 2), 1e4)
    together = module(x, mask)
    for row, length in enumerate(lengths):
        alone = module(x[row : row + 1, :length], everywhere(length))
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_starts_are_those_of_s4d() -> None:
    assert frequencies(6, "lin").tolist() == pytest.approx([0, math.pi, 2 * math.pi])
    assert frequencies(6, "inv").tolist() == pytest.approx([6 / math.pi * 5, 6 / math.pi * 1, 6 / math.pi * 0.2])
    torch.manual_seed(0)
    torch.manual_seed(0)
    module = ElasticStateSpace(SIZE, 64, 4, nn.SiLU(), state=6, init="inv")
    log_transition, _ = module._discrete(0, None)
    step = -2 * log_transition.real.detach()[:, 0]
    assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1
    assert float(step.log().mean()) == pytest.approx(math.log(0.01), abs=0.4)  # log-uniform
    frequency = log_transition.imag.detach() / step.unsqueeze(-1)
    torch.testing.assert_close(frequency, frequencies(6, "inv").expand(256, 3))


@pytest.mark.parametrize("init", ["lin", "inv"])
def test_one_pair_of_states_is_enough(init: str) -> None:
    module, x = layer(state=2, init=init, bidirectional=False), torch.randn(2, 9, SIZE)
    state, outputs = torch.zeros(2, module.stream_width(module.components)), []
    for frame in x.split(1, dim=1):
        output, state = module.stream(frame, state)
        outputs.append(output)
    assert bool(torch.cat(outputs).isfinite().all())
    torch.testing.assert_close(torch.cat(outputs, 1), module(x, everywhere(9)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init", ["lin", "inv"])
def test_no_parameter_is_larger_than_scaled_adam_lets_it_be(init: str) -> None:
    largest = inspect.signature(ScaledAdam).parameters["param_max_rms"].default
    module = ElasticStateSpace(SIZE, 8, 4, nn.SiLU(), state=64, init=init, stack=2)
    assert all(parameter.square().mean().sqrt() < largest / 2 for parameter in module.parameters())


@pytest.mark.parametrize("init", ["xavier_uniform", "chainer"])
def test_a_configs_init_leaves_the_dynamics_alone(init: str) -> None:
    module = layer()
    initialize(module, init)
    assert torch.equal(module.frequency, (torch.arange(4) / 3).expand(1, 12, 4))
    assert module.log_decay.exp().sub(0.5).abs().max() < 1e-6 and module.log_step.abs().max() <= 1


def test_autocast_leaves_kernels_in_float32() -> None:
    module, x = layer(), torch.randn(2, 50, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x, everywhere(50, 2))
    assert output.dtype is torch.bfloat16 and bool(output.isfinite().all())
    torch.testing.assert_close(output.float(), module(x, everywhere(50, 2)), atol=0.1, rtol=0.1)
    output.float().sum().backward()
    assert module.log_step.grad.dtype is torch.float32 and bool(module.log_step.grad.isfinite().all())
