"""Formulas against independent ones, gradients against finite differences, numbers of any scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.losses import alpha_divergence as module
from espnet_todm.losses.alpha_divergence import Divergence, alpha_divergence

UNCLIPPED = 1e30
KINDS = [
    Divergence(),
    Divergence(kind="kl"),
    Divergence(kind="reverse_kl"),
    *(Divergence(kind="alpha", alpha=alpha) for alpha in (-1.0, -0.5, 0.0, 0.3, 1.0)),
]


def by_sums(p: list[float], q: list[float], alpha: float, clip: float = math.inf) -> float:
    """The definition in plain Python, with r^alpha held below ``clip`` (never at alpha = 1)."""
    if alpha == 1:
        return sum(a * math.log(a / b) for a, b in zip(p, q))
    if alpha == 0:
        return -sum(b * math.log(min(a / b, clip)) for a, b in zip(p, q))
    mean = sum(b * min((a / b) ** alpha, clip) for a, b in zip(p, q))
    return (mean - 1) / (alpha * (alpha - 1))


def logits(seed: int, *shape: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def gradient(divergence: Divergence, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(divergence(teacher, student).sum(), student)
    return found


@pytest.mark.parametrize("alpha", [-2.0, -1.0, -0.3, 0.0, 0.5, 1.0, 2.0])
def test_exact_divergence_is_the_definition(alpha: float) -> None:
    teacher, student = logits(0, 5, 7), logits(1, 5, 7)
    p, q = teacher.softmax(-1).tolist(), student.softmax(-1).tolist()
    expected = torch.tensor([by_sums(a, b, alpha) for a, b in zip(p, q)], dtype=torch.float64)
    torch.testing.assert_close(alpha_divergence(teacher, student, alpha), expected)
    if alpha == 1:
        kl = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
        torch.testing.assert_close(alpha_divergence(teacher, student, alpha), kl)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("step", [-2e-3, 2e-3])
def test_divergence_is_continuous_at_its_limits(limit: float, step: float) -> None:
    teacher, student = logits(2, 6, 9), logits(3, 6, 9)
    near, at = (alpha_divergence(teacher, student, alpha) for alpha in (limit + step, limit))
    torch.testing.assert_close(near, at, rtol=2e-2, atol=1e-6)
    assert not torch.equal(near, at)


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_value_is_the_definition_under_the_clip(alpha: float) -> None:
    teacher, student = logits(4, 20, 8), logits(5, 20, 8)
    found = Divergence(kind="alpha", alpha=alpha, clip=3.0)(teacher, student)
    p, q = teacher.softmax(-1).tolist(), student.softmax(-1).tolist()
    expected = torch.tensor([by_sums(a, b, alpha, clip=3.0) for a, b in zip(p, q)], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    if alpha != 1:
        assert not torch.allclose(found, alpha_divergence(teacher, student, alpha)), "no ratio reached the clip"


@pytest.mark.parametrize("alpha", [-1.0, -0.4, 0.0, 0.6, 1.0])
def test_without_clipping_value_and_gradient_are_the_exact_ones(alpha: float) -> None:
    divergence = Divergence(kind="alpha", alpha=alpha, clip=UNCLIPPED)
    teacher, student = logits(6, 4, 6), logits(7, 4, 6).requires_grad_()
    exact = alpha_divergence(teacher, student, alpha)
    torch.testing.assert_close(divergence(teacher, student), exact)
    (expected,) = torch.autograd.grad(exact.sum(), student)
    torch.testing.assert_close(gradient(divergence, teacher, student), expected)
    assert torch.autograd.gradcheck(lambda z: divergence(teacher, z), (student,))


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "adaptive_alpha"])
def test_gradcheck_of_the_other_kinds(kind: str) -> None:
    divergence = Divergence(kind=kind, clip=UNCLIPPED)
    teacher, student = logits(8, 3, 2, 6), logits(9, 3, 2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(teacher, z), (student,))


def test_kl_is_torchs() -> None:
    teacher, student = logits(10, 5, 8), logits(11, 5, 8).requires_grad_()
    for kind, target, given_ in (("kl", teacher, student), ("reverse_kl", student, teacher)):
        expected = torch.nn.functional.kl_div(
            given_.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        torch.testing.assert_close(Divergence(kind=kind)(teacher, student), expected)
        (slope,) = torch.autograd.grad(expected.sum(), student)
        torch.testing.assert_close(gradient(Divergence(kind=kind), teacher, student), slope)


def surrogate(teacher: torch.Tensor, student: torch.Tensor, alpha: float, clip: float) -> torch.Tensor:
    """Gradient of -sum sg(q rho) log q as published, by autograd, with the published constants in rho."""
    student = student.detach().requires_grad_()
    log_q = student.log_softmax(-1)
    q, r = log_q.detach().exp(), (teacher.log_softmax(-1) - log_q.detach()).exp()
    if alpha == -1:
        rho = 0.5 - (1 / r).clamp(0, clip)
    elif alpha == 1:
        rho = r
    elif alpha == 0:
        rho = r.clamp(0, clip).log() - 1
    else:
        rho = (r**alpha).clamp(0, clip) / alpha + 1 / (alpha * (alpha - 1))
    (found,) = torch.autograd.grad(-(q * rho * log_q).sum(), student)
    return found


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_gradient_is_the_published_surrogate(alpha: float) -> None:
    teacher, student = logits(12, 30, 10), logits(13, 30, 10)
    found = gradient(Divergence(kind="alpha", alpha=alpha, clip=2.5), teacher, student)
    torch.testing.assert_close(found, surrogate(teacher, student, alpha, clip=2.5))


def test_adaptive_takes_the_larger_for_each_distribution() -> None:
    teacher, student = logits(14, 40, 6, scale=0.7), logits(15, 40, 6, scale=0.7)
    low, high = (Divergence(kind="alpha", alpha=alpha) for alpha in (-1.0, 1.0))
    takes_low = low(teacher, student) > high(teacher, student)
    assert 0 < takes_low.sum() < len(takes_low), "both must occur"
    torch.testing.assert_close(
        Divergence()(teacher, student), torch.maximum(low(teacher, student), high(teacher, student))
    )
    expected = torch.where(takes_low.unsqueeze(-1), gradient(low, teacher, student), gradient(high, teacher, student))
    torch.testing.assert_close(gradient(Divergence(), teacher, student), expected)


def test_a_surely_wrong_student_still_learns() -> None:
    teacher, student = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[0.0, 20.0, 0.0]])
    slope = gradient(Divergence(), teacher, student)
    torch.testing.assert_close(slope, torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    divergence=st.sampled_from(KINDS),
)
def test_finite_and_not_negative_at_any_scale(
    seed: int, scale: float, dtype: torch.dtype, divergence: Divergence
) -> None:
    teacher, student = logits(seed, 4, 12, scale=scale, dtype=dtype), logits(seed + 1, 4, 12, scale=scale, dtype=dtype)
    student.requires_grad_()
    value = divergence(teacher, student)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(value).all() and (value >= 0).all()
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert slope.dtype == dtype and torch.isfinite(slope).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), alpha=st.floats(-3.0, 1.0), clip=st.floats(4.0, 50.0))
def test_properties_of_a_divergence(seed: int, alpha: float, clip: float) -> None:
    divergence = Divergence(kind="alpha", alpha=alpha, clip=clip)
    teacher, student = logits(seed, 3, 7), logits(seed + 1, 3, 7)
    value, slope = divergence(teacher, student), gradient(divergence, teacher, student)
    assert (value > 0).all()
    assert divergence(teacher, teacher).abs().max() < 1e-9
    assert gradient(divergence, teacher, teacher).abs().max() < 1e-9
    assert slope.sum(-1).abs().max() < 1e-9, "adding a constant to the logits must not matter"
    torch.testing.assert_close(divergence(teacher + 100, student - 3), value)


def test_half_precision_is_computed_in_float32() -> None:
    teacher, student = logits(16, 50, 300, scale=5.0), logits(17, 50, 300, scale=5.0)
    half = [x.half() for x in (teacher, student)]
    torch.testing.assert_close(Divergence()(*half), Divergence()(*(x.float() for x in half)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(Divergence()(*half), Divergence()(*(x.float() for x in half)))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = logits(18, 5, 11, 7), logits(19, 5, 11, 7)
    valid = torch.rand(5, 11, generator=torch.Generator().manual_seed(0)) < 0.6
    whole, slope = Divergence()(teacher, student, valid), gradient(Divergence(), teacher, student)
    monkeypatch.setitem(module._BLOCK, "cpu", 21)
    assert torch.equal(Divergence()(teacher, student, valid), whole)
    assert torch.equal(gradient(Divergence(), teacher, student), slope)


def test_teacher_gets_no_gradient_and_evaluation_keeps_nothing() -> None:
    teacher, student = logits(20, 3, 5).requires_grad_(), logits(21, 3, 5).requires_grad_()
    Divergence()(teacher, student).sum().backward()
    assert teacher.grad is None and student.grad is not None
    assert not Divergence()(teacher, student.detach()).requires_grad


def test_masked_rows_are_never_looked_at() -> None:
    teacher, student = logits(22, 4, 6), logits(23, 4, 6)
    valid = torch.tensor([True, False, True, False])
    teacher[1], student[3] = math.nan, math.inf
    student.requires_grad_()
    value = Divergence()(teacher, student, valid)
    value.sum().backward()
    assert value[[1, 3]].tolist() == [0, 0] and student.grad is not None
    assert student.grad[[1, 3]].abs().max() == 0 and torch.isfinite(student.grad).all()
    torch.testing.assert_close(value[::2], Divergence()(teacher[::2], student[::2]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "jensen"}, ["kind", "'jensen'", "reverse_kl"]),
        ({"clip": 1.0}, ["clip", "1.0", "above 1"]),
        ({"clip": math.nan}, ["clip", "nan"]),
        ({"alpha_max": 2}, ["alpha_max", "2", "between"]),
        ({"alpha_min": -4.5}, ["alpha_min", "-4.5", "-4"]),
        ({"alpha_min": "low"}, ["alpha_min", "'low'"]),
        ({"alpha_min": 0.5, "alpha_max": 0.5}, ["alpha_min", "below alpha_max"]),
        ({"kind": "alpha"}, ["alpha", "None"]),
        ({"kind": "kl", "alpha": 0.5}, ["alpha", "0.5", "kind: alpha"]),
    ],
)
def test_bad_options_are_named(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        Divergence(**options)
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Divergence()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="valid"):
        Divergence()(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="valid"):
        Divergence()(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))
