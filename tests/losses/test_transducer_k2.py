"""Equality with k2, value and gradient. Skipped where k2 is not installed; ``make test-k2`` runs it where it is.

k2 takes at least one label and no more labels than frames in a batch's sizes; within those, utterances of any length.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.losses.transducer import pruned_loss, transducer_loss
from espnet_todm.losses.transducer_pruning import gather_ranges, prune_ranges, simple_loss
from tests.losses.lattices import Batch, gradients, lattices, sizes

k2 = pytest.importorskip("k2")
pytestmark = pytest.mark.k2

SEEDS = st.integers(0, 2**31)


def for_k2(utterances: list, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Batch, torch.Tensor]:
    """A batch of sizes that k2 takes, and its boundary (B, 4)."""
    longest = max(labels for _, labels in utterances)
    batch = lattices([(max(frames, longest), labels) for frames, labels in utterances], seed, dtype=dtype)
    zero = torch.zeros_like(batch.lengths)
    return batch, torch.stack([zero, zero, batch.label_lengths, batch.lengths], 1)


@settings(max_examples=30, deadline=None)
@given(
    utterances=sizes(9, 7, least_labels=1),
    seed=SEEDS,
    am_scale=st.sampled_from([0.0, 0.2]),
    lm_scale=st.sampled_from([0.0, 0.25]),
)
def test_simple_loss_is_the_smoothed_one(utterances: list, seed: int, am_scale: float, lm_scale: float) -> None:
    if am_scale:  # k2's average language model has the padding in it; ours has not, so there is none here.
        utterances = [(frames, utterances[0][1]) for frames, _ in utterances]
    batch, boundary = for_k2(utterances, seed)
    found, occupation = simple_loss(batch.am, batch.lm, *batch.targets, am_scale=am_scale, lm_scale=lm_scale)
    expected, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
        batch.lm,
        batch.am,
        batch.labels,
        0,
        lm_only_scale=lm_scale,
        am_only_scale=am_scale,
        boundary=boundary,
        rnnt_type="regular",
        reduction="none",
        return_grad=True,
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, batch.am, batch.lm), gradients(expected, batch.am, batch.lm))
    torch.testing.assert_close(occupation.label, px_grad[:, :, :-1].transpose(1, 2))
    torch.testing.assert_close(occupation.blank, py_grad.transpose(1, 2))


@settings(max_examples=40, deadline=None)
@given(utterances=sizes(12, 9, least_labels=1), seed=SEEDS, width=st.integers(2, 12))
def test_ranges_are_those_of_k2(utterances: list, seed: int, width: int) -> None:
    batch, boundary = for_k2(utterances, seed)
    _, occupation = simple_loss(batch.am, batch.lm, *batch.targets)
    px_grad = torch.nn.functional.pad(occupation.label.transpose(1, 2), (0, 1)).contiguous()
    expected = k2.get_rnnt_prune_ranges(px_grad, occupation.blank.transpose(1, 2).contiguous(), boundary, width)
    ranges = prune_ranges(occupation, batch.lengths, batch.label_lengths, width)
    assert torch.equal(ranges, expected)
    am, lm = gather_ranges(batch.am, batch.lm, ranges)
    for ours, theirs in zip((am, lm), k2.do_rnnt_pruning(batch.am, batch.lm, expected)):
        assert torch.equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(utterances=sizes(9, 7, least_labels=1), seed=SEEDS, width=st.integers(2, 9))
def test_pruned_loss_is_k2s(utterances: list, seed: int, width: int) -> None:
    batch, boundary = for_k2(utterances, seed)
    _, occupation = simple_loss(batch.am, batch.lm, *batch.targets)
    ranges = prune_ranges(occupation, batch.lengths, batch.label_lengths, width)
    logits = lattices([(batch.am.shape[1], ranges.shape[2] - 1)] * len(batch.am), seed + 1).logits
    found = pruned_loss(logits, batch.labels, ranges, *batch.targets[1:], backend="torch")
    expected = k2.rnnt_loss_pruned(logits, batch.labels, ranges, 0, boundary, rnnt_type="regular", reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, logits), gradients(expected, logits))


@settings(max_examples=40, deadline=None)
@given(
    utterances=sizes(6, 7),
    seed=SEEDS,
    width=st.sampled_from([None, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_the_backend_takes_what_ours_takes(utterances: list, seed: int, width: int, dtype: torch.dtype) -> None:
    """Also empty transcripts, more labels than frames, and half precision."""
    batch = lattices(utterances, seed, dtype=dtype)
    labels, *lengths = batch.targets
    if width is None:
        logits = batch.logits
        losses = [transducer_loss(logits, *batch.targets, backend=name) for name in ("torch", "k2")]
    else:
        _, occupation = simple_loss(batch.am, batch.lm, *batch.targets)
        ranges = prune_ranges(occupation, *lengths, width)
        logits = batch.logits[:, :, : ranges.shape[2]].detach().clone().requires_grad_()
        losses = [pruned_loss(logits, labels, ranges, *lengths, backend=name) for name in ("torch", "k2")]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    slopes = [gradients(loss, logits)[0].float() for loss in losses]
    torch.testing.assert_close(
        *slopes, rtol=1e-2 if dtype == torch.float16 else 1e-4, atol=1e-2 if dtype == torch.float16 else 1e-4
    )
