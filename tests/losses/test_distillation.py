"""Scale, padding and shapes of the distillation of CTC frame posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation

DIVERGENCES = [Divergence(), Divergence(kind="kl"), Divergence(kind="reverse_kl"), Divergence(kind="alpha", alpha=-1)]


def batch(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 2
    return teacher, student


def test_summed_over_frames_and_averaged_over_utterances() -> None:
    teacher, student = batch(0, 3, 6, 5)
    lengths = torch.tensor([6, 1, 4])
    per_frame = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    expected = (per_frame[0].sum() + per_frame[1, :1].sum() + per_frame[2, :4].sum()) / 3
    found = ctc_frame_distillation(teacher, student, lengths, Divergence(kind="kl"))
    assert found.shape == ()
    torch.testing.assert_close(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    garbage=st.sampled_from([0.0, 1e4, math.inf, -math.inf, math.nan]),
    divergence=st.sampled_from(DIVERGENCES),
)
def test_a_batch_is_the_mean_of_its_utterances_whatever_the_padding(
    seed: int, lengths: list[int], extra: int, garbage: float, divergence: Divergence
) -> None:
    frames = max(lengths) + extra
    teacher, student = batch(seed, len(lengths), frames, 5)
    for row, length in enumerate(lengths):
        teacher[row, length:], student[row, length:] = garbage, garbage
    student.requires_grad_()
    together = ctc_frame_distillation(teacher, student, torch.tensor(lengths), divergence)
    (slope,) = torch.autograd.grad(together, student)
    assert torch.isfinite(together)
    alone = 0.0
    for row, length in enumerate(lengths):
        single = student[row : row + 1, :length].detach().requires_grad_()
        loss = ctc_frame_distillation(teacher[row : row + 1, :length], single, torch.tensor([length]), divergence)
        alone += loss.item()
        (expected,) = torch.autograd.grad(loss, single)
        torch.testing.assert_close(slope[row : row + 1, :length] * len(lengths), expected)
        assert (slope[row, length:] == 0).all()
    assert together.item() == pytest.approx(alone / len(lengths))


def test_same_logits_cost_nothing() -> None:
    teacher, _ = batch(1, 2, 4, 5)
    assert float(ctc_frame_distillation(teacher, teacher, torch.tensor([4, 2]), Divergence())) == pytest.approx(0)


@pytest.mark.parametrize(
    ("teacher", "student", "lengths", "words"),
    [
        ((2, 4, 5), (2, 4, 6), [4, 4], "one shape"),
        ((4, 5), (4, 5), [4], "one shape"),
        ((2, 4, 5), (2, 4, 5), [4], r"\(2,\)"),
        ((2, 4, 5), (2, 4, 5), [4, 5], "between 0 and T = 4"),
        ((2, 4, 5), (2, 4, 5), [4, -1], "between 0 and T = 4"),
        ((2, 4, 5), (2, 4, 5), [4.0, 2.0], "whole numbers"),
    ],
)
def test_mismatches_are_named(teacher: tuple, student: tuple, lengths: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctc_frame_distillation(torch.zeros(teacher), torch.zeros(student), torch.tensor(lengths), Divergence())
