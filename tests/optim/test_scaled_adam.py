"""ScaledAdam against the formulas written out tensor by tensor, and what it does with missing gradients and state."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any, Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.optim.scaled_adam import ScaledAdam

# torch 1.13 can read no Python float in this mode, of no optimizer.
RESTRICTED = not torch.__version__.startswith("1.")
SHAPES = [(6, 5), (6, 5), (7,), (1,), (), (1, 1), (3, 4, 2), (2,)]


class Reference:
    """The formulas, one float64 tensor after another; ``None`` among the gradients leaves a tensor out."""

    def __init__(self, values: list[Tensor], **options: Any) -> None:
        self.values = [value.detach().double().clone() for value in values]
        self.option = {
            "lr": 0.03, "betas": (0.9, 0.98), "clipping_scale": None, "scalar_lr_scale": 0.1, "eps": 1e-8,
            "param_min_rms": 1e-5, "param_max_rms": 3.0, "scalar_max": 10.0, "size_update_period": 4,
            "clipping_update_period": 100, **options,
        }  # fmt: skip
        self.k = [0] * len(values)
        self.m = [torch.zeros_like(value) for value in self.values]
        self.v = [torch.zeros_like(value) for value in self.values]
        self.u = [0.0] * len(values)
        self.s: list[list[float]] = [[] for _ in values]
        self.rms: list[Optional[float]] = [None] * len(values)
        self.norms: list[float] = []
        self.steps = 0
        self.threshold: Optional[float] = None
        self.clipped = 0

    def clipping_factor(self, gradients: list[Optional[Tensor]]) -> float:
        total = 0.0
        for value, gradient, rms in zip(self.values, gradients, self.rms):
            if gradient is not None:
                unit = self.option["scalar_lr_scale"] if value.numel() == 1 else rms
                total += float(((gradient.double() * unit) ** 2).sum())
        step, period = self.steps, self.option["clipping_update_period"]
        self.steps += 1
        if self.option["clipping_scale"] is None or step == 0:
            return 1.0
        self.norms = [*self.norms, math.sqrt(total)][-period:]
        early = step in (10, 20, 40) and step < period
        if early or step % period == 0:
            ordered = sorted(self.norms)
            self.threshold = self.option["clipping_scale"] * ordered[2 * (len(ordered) // 4)] * (2 if early else 1)
        if self.threshold is None:
            return 1.0
        factor = min(1.0, self.threshold / (math.sqrt(total) + 1e-20))
        self.clipped += factor < 1
        return factor

    def step(self, gradients: list[Optional[Tensor]]) -> None:
        for i, (value, gradient) in enumerate(zip(self.values, gradients)):
            if gradient is not None and self.rms[i] is None:
                self.rms[i] = float((value**2).mean().sqrt())
        factor = self.clipping_factor(gradients)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                self.step_one(i, gradient.double() * factor)

    def step_one(self, i: int, g: Tensor) -> None:
        o, p, k = self.option, self.values[i], self.k[i]
        (b1, b2), period = o["betas"], o["size_update_period"]
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        bias = 1 - b2 ** (k + 1)
        v = self.v[i] / bias if bias < 0.99 else self.v[i]
        scalar = p.numel() == 1
        delta = -(o["lr"] * (o["scalar_lr_scale"] if scalar else 1)) * g / (v.sqrt() + o["eps"])
        if not scalar:
            self.s[i].append(float((p * g).sum()))
            scale = 0.0
            if k % period == period - 1:
                self.rms[i] = float((p**2).mean().sqrt())
                scale = self.scale_step(i, self.rms[i])
            delta = delta * max(self.rms[i], o["param_min_rms"]) + p * scale
        self.m[i] = b1 * self.m[i] + (1 - b1) * delta
        p += self.m[i]
        if scalar:
            p.clamp_(-o["scalar_max"], o["scalar_max"])
        self.k[i] += 1

    def scale_step(self, i: int, rms: float) -> float:
        o, s = self.option, torch.tensor(self.s[i][-self.option["size_update_period"] :], dtype=torch.float64)
        beta = o["betas"][1] ** o["size_update_period"]
        self.u[i] = beta * self.u[i] + (1 - beta) * float((s**2).mean())
        n = (self.k[i] + 1) // o["size_update_period"]
        step = -0.1 * o["lr"] * math.sqrt(1 - beta**n) * float(s.sum()) / (math.sqrt(self.u[i]) + o["eps"])
        if rms < o["param_min_rms"]:
            step = 0.0
        return min(max(-0.1, min(0.1, step)), (o["param_max_rms"] - rms) / rms if rms else math.inf)


def parameters(seed: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype))
        for shape in SHAPES
    ]


def gradients(generator: torch.Generator, values: list[Any], missing: float = 0.0, zeros: float = 0.0) -> list[Any]:
    """Gradients of norms that vary a hundredfold from step to step; some tensors or elements have none."""
    size = 10 ** (2 * float(torch.rand((), generator=generator)) - 1)
    found: list[Any] = []
    for value in values:
        gradient = torch.randn(value.shape, generator=generator, dtype=torch.float64) * size
        gradient = gradient + 0.3 * size * value.detach().double().sign()  # so that sizes change steadily
        gradient[torch.rand(value.shape, generator=generator) < zeros] = 0.0
        absent = float(torch.rand((), generator=generator)) < missing
        found.append(None if absent else gradient.to(value.dtype))
    return found


def apply(optimizer: torch.optim.Optimizer, tensors: list[Any], grads: list[Any]) -> None:
    for tensor, gradient in zip(tensors, grads):
        tensor.grad = None if gradient is None else gradient.clone()
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipping_scale": 2.0},
        {"clipping_scale": 0.5, "clipping_update_period": 30, "lr": 0.1},
        {"clipping_scale": 1.0, "clipping_update_period": 10, "size_update_period": 1},
        {"size_update_period": 3, "param_max_rms": 0.8, "scalar_max": 0.5, "betas": (0.5, 0.9), "lr": 0.3},
        {"param_min_rms": 0.9, "eps": 1e-2},
        {"lr": 0.5, "size_update_period": 8, "scalar_lr_scale": 0.1, "param_max_rms": 50.0},
    ],
)
def test_equals_the_formulas_for_hundreds_of_steps(options: dict[str, Any]) -> None:
    tensors = parameters(0)
    reference = Reference(tensors, **options)
    optimizer = ScaledAdam(tensors, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(330):
        grads = gradients(generator, tensors)
        apply(optimizer, tensors, grads)
        reference.step(grads)
    for mine, theirs in zip(tensors, reference.values):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-9, atol=1e-12)
    assert ("clipping_scale" in options) == (reference.clipped > 0)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    missing=st.sampled_from([0.2, 0.8]),
    period=st.integers(1, 5),
    scale=st.sampled_from([None, 1.0, 2.0]),
    skip=st.booleans(),
)
def test_a_missing_gradient_leaves_value_and_state_as_they_are(
    seed: int, missing: float, period: int, scale: Optional[float], skip: bool
) -> None:
    tensors = parameters(seed)
    options = {"size_update_period": period, "clipping_scale": scale, "clipping_update_period": 20}
    reference = Reference(tensors, **options)
    optimizer = ScaledAdam(tensors, skip_zero_grad=skip, **options)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        grads = gradients(generator, tensors, missing)
        before = copy.deepcopy([(tensor.detach(), optimizer.state.get(tensor)) for tensor in tensors])
        apply(optimizer, tensors, grads)
        if any(gradient is not None for gradient in grads):
            reference.step(grads)
        for tensor, gradient, (value, state) in zip(tensors, grads, before):
            if gradient is None:
                assert torch.equal(tensor, value)
                assert same(optimizer.state.get(tensor), state)
    for mine, theirs in zip(tensors, reference.values):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-9, atol=1e-12)


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal bit by bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second))
    return bool(first == second)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), zeros=st.sampled_from([0.1, 0.5, 0.95]))
def test_skip_zero_grad_keeps_unused_elements(seed: int, zeros: float) -> None:
    tensors = parameters(seed)
    optimizer = ScaledAdam(tensors, skip_zero_grad=True, clipping_scale=2.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(25):
        grads = gradients(generator, tensors, missing=0.1, zeros=zeros)
        before = copy.deepcopy([(tensor.detach(), optimizer.state.get(tensor)) for tensor in tensors])
        apply(optimizer, tensors, grads)
        for tensor, gradient, (value, state) in zip(tensors, grads, before):
            if gradient is None or not gradient.any():
                assert torch.equal(tensor, value)
                assert same(optimizer.state.get(tensor), state)
                continue
            unused = gradient == 0
            assert torch.equal(tensor[unused], value[unused])
            assert not torch.equal(tensor[~unused], value[~unused])
            for key in ("exp_avg", "exp_avg_sq"):
                old = torch.zeros_like(value) if state is None else state[key]
                assert torch.equal(optimizer.state[tensor][key][unused], old[unused])
            assert torch.isfinite(tensor).all()


def test_skip_zero_grad_changes_nothing_when_all_elements_have_gradients() -> None:
    plain, skipping = parameters(3, torch.float32), parameters(3, torch.float32)
    optimizers = [
        ScaledAdam(plain, clipping_scale=2.0),
        ScaledAdam(skipping, clipping_scale=2.0, skip_zero_grad=True),
    ]
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        grads = gradients(generator, plain)
        apply(optimizers[0], plain, grads)
        apply(optimizers[1], skipping, grads)
    assert all(torch.equal(a, b) for a, b in zip(plain, skipping))


@pytest.mark.parametrize("first_partial", [0, 7, 300])
def test_skip_zero_grad_steps_are_each_elements_own(first_partial: int) -> None:
    """An element's moments and bias correction are those of a training in which its unused steps never were."""
    values = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    # Sizes must not differ between the two trainings: no size updates within them.
    options: dict[str, Any] = {"size_update_period": 1000}
    sparse, dense = torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.clone())
    optimizer, other = ScaledAdam([sparse], skip_zero_grad=True, **options), ScaledAdam([dense], **options)
    generator = torch.Generator().manual_seed(0)
    for step in range(first_partial + 40):
        gradient = torch.randn(4, generator=generator, dtype=torch.float64)
        if step >= first_partial and step % 3:
            gradient[1:3] = 0.0
            apply(optimizer, [sparse], [gradient])
            continue
        apply(optimizer, [sparse], [gradient])
        apply(other, [dense], [gradient])
    torch.testing.assert_close(sparse.detach()[1:3], dense.detach()[1:3], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(sparse.detach()[[0, 3]], dense.detach()[[0, 3]])


def test_skip_zero_grad_can_be_switched_on_in_a_resumed_training() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = ScaledAdam([parameter])
    for _ in range(5):
        apply(optimizer, [parameter], [torch.ones(4)])
    optimizer.param_groups[0]["skip_zero_grad"] = True
    apply(optimizer, [parameter], [torch.tensor([1.0, 0.0, 1.0, 0.0])])
    bias = optimizer.state[parameter]["bias"]
    torch.testing.assert_close(bias, torch.tensor([1 - 0.98**6, 1 - 0.98**5] * 2))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    split=st.integers(0, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    skip=st.booleans(),
    way=st.sampled_from(["state_dict", "deepcopy", "pickle"]),
)
def test_training_goes_on_bit_by_bit(seed: int, split: int, dtype: torch.dtype, skip: bool, way: str) -> None:
    tensors = parameters(seed, dtype)
    options: dict[str, Any] = {"clipping_scale": 1.0, "clipping_update_period": 15, "skip_zero_grad": skip}
    optimizer = ScaledAdam(tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(split):
        apply(optimizer, tensors, gradients(generator, tensors, 0.2, 0.2))
    if way == "state_dict":
        others = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        resumed = ScaledAdam(others, **options)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=RESTRICTED))
    elif way == "deepcopy":
        others, resumed = copy.deepcopy((tensors, optimizer))
    else:
        others, resumed = pickle.loads(pickle.dumps((tensors, optimizer)))
    for _ in range(30):
        grads = gradients(generator, tensors, 0.2, 0.2)
        apply(optimizer, tensors, grads)
        apply(resumed, others, grads)
    assert all(torch.equal(a, b) for a, b in zip(tensors, others))
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_loaded_state_is_a_copy() -> None:
    tensors, others = parameters(0), parameters(0)
    optimizer, other = ScaledAdam(tensors), ScaledAdam(others)
    apply(optimizer, tensors, gradients(torch.Generator().manual_seed(0), tensors))
    other.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(other.state_dict())
    apply(optimizer, tensors, gradients(torch.Generator().manual_seed(1), tensors))
    assert same(other.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_float32_within_rounding(dtype: torch.dtype) -> None:
    half = parameters(4, dtype)
    single = [torch.nn.Parameter(tensor.detach().float()) for tensor in half]
    first, second = ScaledAdam(half, clipping_scale=2.0), ScaledAdam(single, clipping_scale=2.0)
    generator = torch.Generator().manual_seed(4)
    for _ in range(12):
        grads = gradients(generator, half)
        apply(first, half, grads)
        apply(second, single, [gradient.float() for gradient in grads])
    for tensor, exact in zip(half, single):
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor.float(), exact.detach(), rtol=0.1, atol=12 * torch.finfo(dtype).eps)
        assert first.state[tensor]["exp_avg_sq"].dtype == torch.float32


@pytest.mark.parametrize("skip", [False, True])
def test_zero_parameters_and_zero_gradients_stay_finite(skip: bool) -> None:
    tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES] + [torch.nn.Parameter(torch.zeros(0, 3))]
    optimizer = ScaledAdam(tensors, clipping_scale=2.0, clipping_update_period=7, skip_zero_grad=skip)
    for _ in range(15):
        apply(optimizer, tensors, [torch.zeros_like(tensor) for tensor in tensors])
    assert all(not tensor.any() for tensor in tensors)
    for _ in range(15):
        apply(optimizer, tensors, [torch.ones_like(tensor) for tensor in tensors])
    assert all(torch.isfinite(tensor).all() and (tensor < 0).all() for tensor in tensors)


def test_layouts_that_are_not_contiguous_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64))
    other = torch.nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    optimizers = ScaledAdam([plain]), ScaledAdam([other])
    for _ in range(9):
        gradient = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
        apply(optimizers[0], [plain], [gradient])
        apply(optimizers[1], [other], [gradient])
    torch.testing.assert_close(plain.detach(), other.detach().contiguous(), rtol=1e-12, atol=0)


def test_groups_have_their_own_options_and_clipping() -> None:
    tensors = parameters(5)
    groups = [tensors[:4], tensors[4:]]
    options = [{"lr": 0.1, "clipping_scale": 1.0}, {"lr": 0.01, "clipping_scale": None}]
    references = [Reference(group, **option) for group, option in zip(groups, options)]
    optimizer = ScaledAdam([{"params": groups[0], **options[0]}], lr=0.5)
    optimizer.add_param_group({"params": groups[1], **options[1]})
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        grads = gradients(generator, tensors)
        apply(optimizer, tensors, grads)
        references[0].step(grads[:4])
        references[1].step(grads[4:])
    for mine, theirs in zip(tensors, references[0].values + references[1].values):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-9, atol=1e-12)


def test_reaches_what_adam_reaches_on_a_toy_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    targets = (inputs[:, :1] * inputs[:, 1:2]).sin() + inputs[:, 2:3]

    def final_loss(build: Any) -> float:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        optimizer = build(model.parameters())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = ((model(inputs) - targets) ** 2).mean()
            loss.backward()
            return loss

        for _ in range(400):
            loss = optimizer.step(closure)
        return float(loss.detach())

    adam = min(final_loss(lambda p, lr=lr: torch.optim.Adam(p, lr=lr)) for lr in (0.001, 0.003, 0.01))
    assert final_loss(lambda p: ScaledAdam(p, clipping_scale=2.0)) <= 1.5 * adam
    assert final_loss(lambda p: ScaledAdam(p, lr=0.045, skip_zero_grad=True)) <= 1.5 * adam


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -0.1), ("lr", "1e-3"), ("lr", math.nan), ("lr", True), ("betas", (0.9, 1.0)), ("betas", 0.9),
        ("betas", (0.9, -0.1)), ("clipping_scale", 0.0), ("clipping_scale", "none"), ("scalar_lr_scale", -1),
        ("eps", 0.0), ("param_min_rms", 0.0), ("param_max_rms", 1e-6), ("scalar_max", 0), ("size_update_period", 0),
        ("size_update_period", 2.0), ("clipping_update_period", 0), ("skip_zero_grad", "yes"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named_with_its_value(key: str, value: Any) -> None:
    for build in (
        lambda: ScaledAdam(parameters(0), **{key: value}),
        lambda: ScaledAdam([{"params": parameters(0), key: value}]),
    ):
        with pytest.raises(UserError) as caught:
            build()
        message = str(caught.value)
        shown = value[-1] if isinstance(value, tuple) else value
        assert f"scaledadam: {key}: " in message
        assert repr(shown) in message
        assert "must be" in message
        assert "\n" not in message


def test_what_it_cannot_train_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="complex64"):
        ScaledAdam([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = ScaledAdam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse"):
        optimizer.step()
    adam = torch.optim.Adam(parameters(0))
    with pytest.raises(UserError, match="only ScaledAdam's"):
        ScaledAdam(parameters(0)).load_state_dict(adam.state_dict())
