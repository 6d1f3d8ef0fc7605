"""Scale, padding and shapes of the distillation of CTC frame posteriors and of transducer lattices."""

from __future__ import annotations

import math
from typing import Any, Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation, lattice_distillation
from espnet_todm.losses.transducer_pruning import prune_ranges, simple_loss
from tests.losses.lattices import Batch, lattices, sizes

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


LENGTHS = [(5, 3), (4, 0), (2, 4)]


def by_hand(
    teacher: torch.Tensor, student: torch.Tensor, example: Batch, divergence: Divergence, kept: Optional[list] = None
) -> list[torch.Tensor]:
    """Per utterance the sum over its nodes, from the softmax over the whole vocabulary; only rows ``kept`` of each frame.

    A class that is missing is left out, so the last row's distributions have two classes.
    """
    losses = []
    for row, (frames, count) in enumerate(zip(example.lengths.tolist(), example.label_lengths.tolist())):
        total = student.new_zeros(())
        for t in range(frames):
            for u in range(count + 1):
                if kept is not None and u not in kept[row][t]:
                    continue
                collapsed = []
                for logits in (teacher.detach(), student):
                    p = logits[row, t, u].softmax(-1)
                    named = [p[0]] if u == count else [p[0], p[example.labels[row, u]]]
                    collapsed.append(torch.stack([*named, 1 - sum(named)]).log())
                total = total + divergence(*collapsed)
        losses.append(total)
    return losses


def lattice_loss(
    teacher: torch.Tensor,
    student: torch.Tensor,
    example: Batch,
    divergence: Divergence = DIVERGENCES[0],
    **options: Any,
) -> torch.Tensor:
    return lattice_distillation(teacher, student, *example.targets, divergence, **options)


def windows(example: Batch, width: int) -> torch.Tensor:
    _, occupation = simple_loss(example.am, example.lm, *example.targets)
    return prune_ranges(occupation, example.lengths, example.label_lengths, width)


def kept_nodes(logits: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    return logits.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, logits.shape[-1]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("width", [None, 3])
def test_lattice_divergence_is_that_of_the_three_classes(divergence: Divergence, width: Optional[int]) -> None:
    example, teacher = lattices(LENGTHS, seed=1), lattices(LENGTHS, seed=2).logits
    student, options, kept = example.logits, {}, None
    given_ = (teacher, student)
    if width is not None:
        ranges = windows(example, width)
        options, kept = {"ranges": ranges}, ranges.tolist()
        given_ = (kept_nodes(teacher, ranges), kept_nodes(student, ranges))
    losses = by_hand(teacher, student, example, divergence, kept)
    nodes = (
        [t * (u + 1) for t, u in LENGTHS] if width is None else [t * min(u + 1, len(kept[0][0])) for t, u in LENGTHS]
    )
    paths = sum(loss / n * (t + u) for loss, n, (t, u) in zip(losses, nodes, LENGTHS)) / 3
    for expected, scale in ((sum(losses) / 3, "lattice"), (paths, "path")):
        found = lattice_loss(*given_, example, divergence, scale=scale, **options)
        assert found.shape == ()
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(loss, student, retain_graph=True) for loss in (found, expected)]
        torch.testing.assert_close(*slopes)


def test_lattice_gradcheck() -> None:
    example, teacher = lattices([(3, 2), (2, 0)], seed=3), lattices([(3, 2), (2, 0)], seed=4).logits
    unclipped = Divergence(clip=1e30)
    assert torch.autograd.gradcheck(lambda z: lattice_loss(teacher, z, example, unclipped), (example.logits,))


def test_lattice_of_the_same_logits_costs_nothing_and_the_teacher_learns_nothing() -> None:
    example = lattices(LENGTHS, seed=5)
    loss = lattice_loss(example.logits, example.logits, example)
    (slope,) = torch.autograd.grad(loss, example.logits)
    assert loss.item() == pytest.approx(0, abs=1e-12) and slope.abs().max() < 1e-12
    teacher = lattices(LENGTHS, seed=6).logits
    lattice_loss(teacher, example.logits, example).backward()
    assert teacher.grad is None and example.logits.grad is not None


@settings(max_examples=40, deadline=None)
@given(
    utterances=sizes(5, 5),
    seed=st.integers(0, 2**31),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    garbage=st.sampled_from([0.0, 1e4, math.inf, -math.inf, math.nan]),
    width=st.sampled_from([None, 2, 3]),
    divergence=st.sampled_from(DIVERGENCES),
)
def test_a_batch_of_lattices_is_the_mean_of_its_utterances_whatever_the_padding(
    utterances: list, seed: int, extra: tuple, garbage: float, width: Optional[int], divergence: Divergence
) -> None:
    example, other = lattices(utterances, seed, extra), lattices(utterances, seed + 1, extra)
    ranges = None if width is None else windows(example, width)
    teacher, student = (
        (x if ranges is None else kept_nodes(x, ranges)).detach().clone() for x in (other.logits, example.logits)
    )
    for row, (frames, count) in enumerate(utterances):
        for logits in (teacher, student):
            logits[row, frames:], logits[row, :, count + 1 :] = garbage, garbage
        example.labels[row, count:] = -1
    student.requires_grad_()
    together = lattice_loss(teacher, student, example, divergence, ranges=ranges)
    (slope,) = torch.autograd.grad(together, student)
    alone = 0.0
    for row, (frames, count) in enumerate(utterances):
        inside = (slice(row, row + 1), slice(0, frames), slice(0, count + 1))
        single = student[inside].detach().requires_grad_()
        targets = example.labels[row : row + 1, :count], *(x[row : row + 1] for x in example.targets[1:])
        own = None if ranges is None else ranges[inside]
        loss = lattice_distillation(teacher[inside], single, *targets, divergence, ranges=own)
        alone += loss.item()
        torch.testing.assert_close(slope[inside] * len(utterances), *torch.autograd.grad(loss, single))
        assert (slope[row, frames:] == 0).all() and (slope[row, :, count + 1 :] == 0).all()
    assert together.item() == pytest.approx(alone / len(utterances))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    divergence=st.sampled_from(DIVERGENCES),
    vocabulary=st.sampled_from([2, 3, 6]),
)
def test_lattice_divergence_is_finite_at_any_scale_and_precision(
    seed: int, scale: float, dtype: torch.dtype, divergence: Divergence, vocabulary: int
) -> None:
    """A vocabulary of 2 has no rest at all, one of 3 may have lost it to rounding."""
    example, other = (lattices(LENGTHS, seed + n, vocabulary=vocabulary) for n in (0, 1))
    teacher, student = (
        (x.logits.detach().clamp(-6, 6) / 6 * scale).to(dtype).requires_grad_() for x in (other, example)
    )
    loss = lattice_loss(teacher, student, example, divergence)
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss >= 0
    (slope,) = torch.autograd.grad(loss, student)
    assert slope.dtype == dtype and torch.isfinite(slope).all()


def test_a_rest_below_rounding_is_still_taught() -> None:
    """1 - P(label) - P(blank) is 0 in float32 on both sides; the rest's own logits say by how much they differ."""
    example = lattices([(1, 0)], vocabulary=3, dtype=torch.float32)
    teacher = torch.tensor([[[[30.0, 0.0, 0.0]]]])
    student = torch.tensor([[[[90.0, 0.0, 0.0]]]], requires_grad=True)
    loss = lattice_loss(teacher, student, example, Divergence(kind="kl"))
    rest = 2 * math.exp(-30)
    assert loss.item() == pytest.approx(rest * 60 - rest, rel=1e-3)
    (slope,) = torch.autograd.grad(loss, student)
    assert slope[0, 0, 0].tolist() == pytest.approx([rest, -rest / 2, -rest / 2], rel=1e-3)


@pytest.mark.parametrize(
    ("teacher", "student", "options", "words"),
    [
        ((2, 4, 3, 6), (2, 4, 3, 5), {}, "one shape"),
        ((2, 4, 3), (2, 4, 3), {}, "one shape"),
        ((2, 4, 4, 6), (2, 4, 4, 6), {}, r"labels \(2, 2\)"),
        ((2, 4, 3, 6), (2, 4, 3, 6), {"ranges": torch.zeros(2, 4, 2, dtype=torch.int64)}, "ranges"),
        ((2, 4, 2, 6), (2, 4, 2, 6), {"ranges": torch.zeros(2, 4, 2, dtype=torch.int64)}, "consecutive rows"),
        ((2, 4, 3, 6), (2, 4, 3, 6), {"scale": "frame"}, "'frame' is unknown; allowed: lattice, path"),
    ],
)
def test_mismatched_lattices_are_named(teacher: tuple, student: tuple, options: dict, words: str) -> None:
    example = lattices([(4, 2), (3, 1)])
    with pytest.raises(ValueError, match=words):
        lattice_loss(torch.zeros(teacher), torch.zeros(student), example, **options)
