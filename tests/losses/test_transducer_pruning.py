"""The simple loss against the full one of the same joiner, and what windows promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.losses import transducer_pruning as pruning
from espnet_todm.losses.transducer import transducer_loss
from espnet_todm.losses.transducer_lattice import Occupation
from espnet_todm.losses.transducer_pruning import gather_ranges, prune_ranges, simple_loss
from tests.losses.lattices import Batch, by_enumeration, gradients, lattices, sizes

SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([(0.0, 0.0), (0.0, 0.25), (0.25, 0.0), (0.2, 0.3)])


def joint_loss(batch: Batch) -> torch.Tensor:
    """The full loss of the joiner am + lm."""
    return transducer_loss(batch.am.unsqueeze(2) + batch.lm.unsqueeze(1), *batch.targets, backend="torch")


def random_occupation(seed: int, utterances: list, extra: int) -> tuple[Occupation, torch.Tensor, torch.Tensor]:
    """Any numbers, not only those that a lattice can have."""
    generator = torch.Generator().manual_seed(seed)
    frames, rows = max(t for t, _ in utterances) + extra, max(u for _, u in utterances) + 1
    label, blank = (torch.rand(len(utterances), frames, n, generator=generator) for n in (rows - 1, rows))
    lengths, label_lengths = (torch.tensor(x) for x in zip(*utterances))
    return Occupation(label, blank), lengths, label_lengths


@settings(max_examples=30, deadline=None)
@given(utterances=sizes(7, 8), seed=SEEDS, scale=st.sampled_from([1.0, 5.0, 300.0, 1e4]))
def test_without_scales_it_is_the_full_loss_of_the_sum(utterances: list, seed: int, scale: float) -> None:
    """Scores of hundreds make all products of exponentials underflow; those nodes have to be found and mended."""
    batch = lattices(utterances, seed, scale=scale)
    found, expected = simple_loss(batch.am, batch.lm, *batch.targets)[0], joint_loss(batch)
    torch.testing.assert_close(found, expected)
    slopes = gradients(found, batch.am, batch.lm), gradients(expected, batch.am, batch.lm)
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)


def test_gradcheck() -> None:
    batch = lattices([(4, 3), (2, 1)], seed=2)
    for am_scale, lm_scale in ((0.0, 0.0), (0.2, 0.3), (0.5, 0.5)):

        def loss(
            am: torch.Tensor, lm: torch.Tensor, am_scale: float = am_scale, lm_scale: float = lm_scale
        ) -> torch.Tensor:
            return simple_loss(am, lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)[0]

        assert torch.autograd.gradcheck(loss, (batch.am, batch.lm))


def test_the_normalizer_is_exact_where_products_underflow() -> None:
    am = torch.tensor([[[100.0, -100.0, 0.0]]], dtype=torch.float32).requires_grad_()
    lm = torch.tensor([[[-150.0, 150.0, 1.0]]], dtype=torch.float32).requires_grad_()
    found = pruning._LogNormalizer.apply(am, lm)
    expected = (am.double() + lm.double()).logsumexp(-1)
    torch.testing.assert_close(found.double().reshape(-1), expected.reshape(-1))
    torch.testing.assert_close(
        [x.double() for x in torch.autograd.grad(found.sum(), (am, lm))],
        [x.double() for x in torch.autograd.grad(expected.sum(), (am, lm))],
    )


@settings(max_examples=20, deadline=None)
@given(utterances=sizes(4, 3), seed=SEEDS, scales=SCALES)
def test_scales_mix_log_probabilities(utterances: list, seed: int, scales: tuple) -> None:
    am_scale, lm_scale = scales
    batch = lattices(utterances, seed)
    probs = [batch.lm[row, : labels + 1].softmax(-1) for row, (_, labels) in enumerate(utterances)]
    average = torch.cat(probs).mean(0).log()
    expected = []
    for row, (frames, labels) in enumerate(utterances):
        am, lm = batch.am[row, :frames, None], batch.lm[row, None, : labels + 1]
        mix = (
            (1 - am_scale - lm_scale) * (am + lm).log_softmax(-1)
            + am_scale * (am + average).log_softmax(-1)
            + lm_scale * lm.log_softmax(-1)
        )
        expected.append(by_enumeration(mix, batch.labels[row, :labels].tolist()))
    losses = torch.stack(expected)
    found, _ = simple_loss(batch.am, batch.lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(gradients(found, batch.am, batch.lm), gradients(losses, batch.am, batch.lm))


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(7, 6), seed=SEEDS, scales=SCALES)
def test_occupations_are_probabilities_of_a_path(utterances: list, seed: int, scales: tuple) -> None:
    batch = lattices(utterances, seed, extra=(1, 1))
    _, occupation = simple_loss(batch.am, batch.lm, *batch.targets, am_scale=scales[0], lm_scale=scales[1])
    assert not occupation.blank.requires_grad and not occupation.label.requires_grad
    for row, (frames, labels) in enumerate(utterances):
        label, blank = occupation.label[row], occupation.blank[row]
        torch.testing.assert_close(blank[:frames].sum(-1), torch.ones(frames, dtype=blank.dtype))
        torch.testing.assert_close(label[:, :labels].sum(0), torch.ones(labels, dtype=label.dtype))
        assert blank[frames:].abs().sum() == blank[:, labels + 1 :].abs().sum() == 0
        assert label[frames:].abs().sum() == label[:, labels:].abs().sum() == 0


@settings(max_examples=30, deadline=None)
@given(
    utterances=sizes(6, 7),
    seed=SEEDS,
    scales=SCALES,
    garbage=st.sampled_from([1e4, math.inf, -math.inf, math.nan]),
)
def test_padding_is_never_looked_at(utterances: list, seed: int, scales: tuple, garbage: float) -> None:
    am_scale, lm_scale = scales
    batch = lattices(utterances, seed, extra=(2, 1))
    am, lm = batch.am.detach().clone(), batch.lm.detach().clone()
    expected, _ = simple_loss(am, lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)
    for row, (frames, labels) in enumerate(utterances):
        am[row, frames:], lm[row, labels + 1 :], batch.labels[row, labels:] = garbage, garbage, -1
    am.requires_grad_(), lm.requires_grad_()
    found, _ = simple_loss(am, lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)
    torch.testing.assert_close(found, expected)
    am_slope, lm_slope = gradients(found, am, lm)
    assert torch.isfinite(am_slope).all() and torch.isfinite(lm_slope).all()
    for row, (frames, labels) in enumerate(utterances):
        assert (am_slope[row, frames:] == 0).all() and (lm_slope[row, labels + 1 :] == 0).all()


@settings(max_examples=30, deadline=None)
@given(
    utterances=sizes(6, 8),
    seed=SEEDS,
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    scales=SCALES,
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_finite_at_any_scale_and_precision(
    utterances: list, seed: int, scale: float, scales: tuple, dtype: torch.dtype
) -> None:
    batch = lattices(utterances, seed)
    am, lm = (((x.detach().clamp(-6, 6) / 6) * scale).to(dtype).requires_grad_() for x in (batch.am, batch.lm))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, occupation = simple_loss(am, lm, *batch.targets, am_scale=scales[0], lm_scale=scales[1])
    assert loss.dtype == torch.float32
    exact, _ = simple_loss(am.double(), lm.double(), *batch.targets, am_scale=scales[0], lm_scale=scales[1])
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-3)
    for slope in torch.autograd.grad(loss.sum(), (am, lm)):
        assert slope.dtype == dtype and torch.isfinite(slope).all()
    assert all(torch.isfinite(x).all() for x in occupation)


@settings(max_examples=80, deadline=None)
@given(utterances=sizes(12, 15), seed=SEEDS, width=st.integers(2, 8), extra=st.integers(0, 3))
def test_windows_lead_from_the_first_row_to_the_last(utterances: list, seed: int, width: int, extra: int) -> None:
    occupation, lengths, label_lengths = random_occupation(seed, utterances, extra)
    ranges = prune_ranges(occupation, lengths, label_lengths, width)
    rows = occupation.blank.shape[2]
    found = ranges.shape[2]
    least = max(math.ceil(labels / frames) + 1 for frames, labels in utterances)
    assert ranges.dtype == torch.int64 and ranges.shape[:2] == occupation.blank.shape[:2]
    assert found == min(max(width, least), rows)
    assert (ranges.diff(dim=2) == 1).all() and ranges.min() == 0 and ranges.max() < rows
    for row, (frames, labels) in enumerate(utterances):
        starts = ranges[row, :frames, 0]
        assert starts[0] == 0 and starts[-1] == max(labels + 1 - found, 0)
        assert (starts.diff() >= 0).all() and (starts.diff() < found).all()
        assert (ranges[row, frames:] == ranges[row, frames - 1]).all(), "padding repeats the last window"


def test_windows_follow_the_occupation() -> None:
    """Where steps are small enough, a window is the one that holds most: here the alignment is nearly certain."""
    batch = lattices([(12, 4)], vocabulary=20)
    emitted = [2, 4, 7, 9]
    with torch.no_grad():
        batch.labels[0] = torch.tensor([1, 2, 3, 4])
        batch.am.zero_(), batch.lm.zero_()
        batch.am[0, :, 0] = 10
        for u, t in enumerate(emitted):
            batch.am[0, t, u + 1] = 20
            batch.lm[0, u, u + 1] = 5
    _, occupation = simple_loss(batch.am, batch.lm, *batch.targets)
    ranges = prune_ranges(occupation, batch.lengths, batch.label_lengths, 2)
    for t in range(12):
        before, after = (sum(frame < t + late for frame in emitted) for late in (0, 1))
        assert before in ranges[0, t] and after in ranges[0, t], f"the path's rows in frame {t}"


def test_gathered_parts_are_those_of_the_ranges() -> None:
    utterances = [(5, 4), (3, 2)]
    ranges = prune_ranges(*random_occupation(0, utterances, 0), 2)
    am, lm = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 7, requires_grad=True)
    am_kept, lm_kept = gather_ranges(am, lm, ranges)
    assert am_kept.data_ptr() == am.data_ptr(), "a view"
    for b, t, s in [(0, 0, 0), (0, 4, 1), (1, 2, 1)]:
        assert torch.equal(am_kept[b, t, s], am[b, t]) and torch.equal(lm_kept[b, t, s], lm[b, ranges[b, t, s]])
    weights = torch.randn_like(lm_kept)
    (found,) = torch.autograd.grad((lm_kept * weights).sum(), lm)
    expected = torch.zeros_like(lm)
    for b, t, s in torch.cartesian_prod(*(torch.arange(n) for n in ranges.shape)).tolist():
        expected[b, ranges[b, t, s]] += weights[b, t, s]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="do not match ranges"):
        gather_ranges(am[:, :4], lm, ranges)


@pytest.mark.parametrize("width", [1, 0, -3, 2.5, True, "5"])
def test_bad_widths_are_named(width: object) -> None:
    with pytest.raises(UserError, match=r"prune width.*whole number, 2 or more"):
        prune_ranges(*random_occupation(0, [(3, 2)], 0), width)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("am_scale", "lm_scale", "key"),
    [(-0.1, 0, "am_scale"), (0, 1.5, "lm_scale"), (0.6, 0.6, "am_scale"), (math.nan, 0, "am_scale")],
)
def test_bad_scales_are_named(am_scale: float, lm_scale: float, key: str) -> None:
    batch = lattices([(3, 2)])
    with pytest.raises(UserError, match=f"transducer {key}"):
        simple_loss(batch.am, batch.lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)


def test_mismatches_are_named() -> None:
    batch = lattices([(3, 2), (2, 1)])
    for am, lm in (
        (batch.am[0], batch.lm),
        (batch.am, batch.lm[:, 1:]),
        (batch.am[..., 1:], batch.lm),
        (batch.am[1:], batch.lm),
    ):
        with pytest.raises(ValueError, match="do not match"):
            simple_loss(am, lm, *batch.targets)
