"""The transducer loss against enumeration, against torchaudio and against itself: pruned, padded, in extremes."""

from __future__ import annotations

import math
import sys
from typing import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.losses import transducer_backends as backends
from espnet_todm.losses import transducer_nodes as nodes
from espnet_todm.losses.transducer import pruned_loss, transducer_loss
from espnet_todm.losses.transducer_pruning import prune_ranges, simple_loss
from tests.losses.lattices import Batch, by_enumeration, gradients, lattices, sizes

SEEDS = st.integers(0, 2**31)


def ours(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    return transducer_loss(logits, *batch.targets, backend="torch")


def ranges_of(batch: Batch, width: int) -> torch.Tensor:
    """Windows for the batch that come from its simple loss."""
    _, occupation = simple_loss(batch.am, batch.lm, *batch.targets)
    return prune_ranges(occupation, batch.lengths, batch.label_lengths, width)


def kept(tensor: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """(B, T, U + 1, V) -> (B, T, S, V)."""
    return tensor.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, tensor.shape[-1]))


def pruned(batch: Batch, logits: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """The loss on the kept nodes of whole logits."""
    labels, *lengths = batch.targets
    return pruned_loss(kept(logits, ranges), labels, ranges, *lengths, backend="torch")


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(4, 4), seed=SEEDS)
def test_full_loss_is_the_sum_over_all_alignments(utterances: list, seed: int) -> None:
    batch = lattices(utterances, seed)
    expected = []
    for row, (frames, labels) in enumerate(utterances):
        log_probs = batch.logits[row, :frames, : labels + 1].log_softmax(-1)
        expected.append(by_enumeration(log_probs, batch.labels[row, :labels].tolist()))
    losses = torch.stack(expected)
    found = ours(batch, batch.logits)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(gradients(found, batch.logits), gradients(losses, batch.logits))


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(4, 4), seed=SEEDS, width=st.integers(2, 4))
def test_pruned_loss_is_the_sum_over_the_alignments_inside(utterances: list, seed: int, width: int) -> None:
    batch = lattices(utterances, seed)
    ranges = ranges_of(batch, width)
    expected = []
    for row, (frames, labels) in enumerate(utterances):
        log_probs = batch.logits[row, :frames, : labels + 1].log_softmax(-1)
        expected.append(by_enumeration(log_probs, batch.labels[row, :labels].tolist(), ranges[row].tolist()))
    losses = torch.stack(expected)
    found = pruned(batch, batch.logits, ranges)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(gradients(found, batch.logits), gradients(losses, batch.logits))


@settings(max_examples=40, deadline=None)
@given(
    utterances=sizes(9, 8),
    seed=SEEDS,
    blank=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_torchaudio_agrees_in_value_and_gradient(utterances: list, seed: int, blank: int, dtype: torch.dtype) -> None:
    pytest.importorskip("torchaudio")
    batch = lattices(utterances, seed, dtype=dtype)
    labels = (batch.labels + blank) % batch.logits.shape[-1]
    found, expected = (
        transducer_loss(batch.logits, labels, *batch.targets[1:], blank=blank, backend=name)
        for name in ("torch", "torchaudio")
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    slopes = [gradients(loss, batch.logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


def test_gradcheck() -> None:
    batch = lattices([(3, 2), (2, 3), (1, 0)], seed=1)
    assert torch.autograd.gradcheck(lambda z: ours(batch, z), (batch.logits,))
    ranges = ranges_of(batch, 2)
    assert ranges.shape[2] == 3, "3 labels in 2 frames need a wider window"
    assert torch.autograd.gradcheck(lambda z: pruned(batch, z, ranges), (batch.logits,))


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(7, 6), seed=SEEDS)
def test_a_window_of_all_rows_prunes_nothing(utterances: list, seed: int) -> None:
    batch = lattices(utterances, seed)
    ranges = ranges_of(batch, 100)
    assert ranges.shape == batch.logits.shape[:3]
    full, narrow = ours(batch, batch.logits), pruned(batch, batch.logits, ranges)
    torch.testing.assert_close(narrow, full)
    torch.testing.assert_close(gradients(narrow, batch.logits), gradients(full, batch.logits))


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(9, 8), seed=SEEDS)
def test_pruning_never_lowers_the_loss(utterances: list, seed: int) -> None:
    batch = lattices(utterances, seed)
    loss = pruned(batch, batch.logits, ranges_of(batch, 2))
    assert torch.isfinite(loss).all() and (loss >= ours(batch, batch.logits) - 1e-9).all()


def test_ranges_of_a_good_simple_loss_lose_next_to_nothing() -> None:
    """Logits that are the simple joiner's and put every label on a frame of its own, give or take one."""
    batch = lattices([(30, 9), (24, 7)], seed=3, scale=1.0, vocabulary=30)
    with torch.no_grad():
        batch.am[:, :, 0] += 5
        for row, label in ((row, label) for row in range(2) for label in range(9)):
            batch.am[row, 3 * label + 1 : 3 * label + 3, batch.labels[row, label]] += 6
    joint = batch.am.unsqueeze(2) + batch.lm.unsqueeze(1)
    full = ours(batch, joint)
    gaps = [(pruned(batch, joint, ranges_of(batch, width)) - full).max().item() for width in (2, 4, 6)]
    assert gaps[0] > gaps[1] > gaps[2] >= 0, "or the test shows nothing"
    assert gaps[2] < 1e-3 * full.min().item()


@settings(max_examples=40, deadline=None)
@given(
    utterances=sizes(6, 5),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    garbage=st.sampled_from([0.0, 1e4, math.inf, -math.inf, math.nan]),
    width=st.sampled_from([None, 2, 3]),
    seed=SEEDS,
)
def test_a_batch_is_its_utterances_whatever_the_padding(
    utterances: list, extra: tuple, garbage: float, width: int, seed: int
) -> None:
    batch = lattices(utterances, seed, extra)
    logits = batch.logits.detach().clone()
    for row, (frames, labels) in enumerate(utterances):
        logits[row, frames:] = garbage
        logits[row, :, labels + 1 :] = garbage
        batch.labels[row, labels:] = -1
    logits.requires_grad_()
    ranges = None if width is None else ranges_of(batch, width)
    together = ours(batch, logits) if ranges is None else pruned(batch, logits, ranges)
    (slope,) = torch.autograd.grad(together.sum(), logits)
    for row, (frames, labels) in enumerate(utterances):
        alone = logits[row : row + 1, :frames, : labels + 1].detach().requires_grad_()
        single = Batch(
            batch.labels[row : row + 1, :labels], *(x[row : row + 1] for x in batch.targets[1:]), *[alone] * 3
        )
        inside = None if ranges is None else ranges[row : row + 1, :frames, : labels + 1]
        loss = ours(single, alone) if inside is None else pruned(single, alone, inside)
        torch.testing.assert_close(loss, together[row : row + 1])
        torch.testing.assert_close(slope[row : row + 1, :frames, : labels + 1], *torch.autograd.grad(loss.sum(), alone))
        assert (slope[row, frames:] == 0).all() and (slope[row, :, labels + 1 :] == 0).all()


@pytest.mark.parametrize("backend", ["torch", "torchaudio"])
def test_padding_is_no_matter_in_other_backends(backend: str) -> None:
    pytest.importorskip("torchaudio")
    batch = lattices([(4, 2), (3, 0), (2, 3)], extra=(2, 1), dtype=torch.float32)
    logits = batch.logits.detach().clone()
    logits[1, 3:], logits[2, 2:], logits[0, :, 3:], logits[1, :, 1:] = (math.nan,) * 4
    batch.labels[1] = -1
    logits.requires_grad_()
    loss = transducer_loss(logits, *batch.targets, backend=backend)
    torch.testing.assert_close(loss, ours(batch, batch.logits.detach()))
    loss.sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    utterances=sizes(6, 8),
    seed=SEEDS,
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    width=st.sampled_from([None, 2, 4]),
)
def test_finite_at_any_scale_and_precision(
    utterances: list, seed: int, scale: float, dtype: torch.dtype, width: int
) -> None:
    batch = lattices(utterances, seed, dtype=dtype)
    logits = (batch.logits.detach().double().clamp(-6, 6) * scale / 2).to(dtype).requires_grad_()
    loss = ours(batch, logits) if width is None else pruned(batch, logits, ranges_of(batch, width))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss).all() and (loss > -1e-3).all()
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.dtype == dtype and torch.isfinite(slope).all()
    exact = lattices(utterances, seed)
    expected = (
        ours(exact, logits.double()) if width is None else pruned(exact, logits.double(), ranges_of(batch, width))
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_scores_along_the_lattice(sign: float) -> None:
    """Blanks of +-1e4 in a lattice of many frames, half precision among others: the exact loss is known."""
    frames, labels = 50, 5
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        logits = torch.zeros(1, frames, labels + 1, 4, dtype=dtype)
        logits[..., 0] = sign * 1e4
        logits.requires_grad_()
        targets = torch.ones(1, labels, dtype=torch.int64), torch.tensor([frames]), torch.tensor([labels])
        loss = transducer_loss(logits, *targets, backend="torch")
        high = logits[0, 0, 0, 0].item()
        # Any alignment has 50 blanks and 5 labels, and there are (54 choose 5) of them.
        one = labels * high if sign > 0 else labels * math.log(3) + frames * (math.log(3) - high)
        assert loss.item() == pytest.approx(one - math.log(math.comb(54, 5)), rel=1e-6)
        loss.sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_forbidden_alignments_cost_infinity_and_teach_nothing() -> None:
    batch = lattices([(3, 2)])
    logits = batch.logits.detach().clone()
    logits[0, :, 1, batch.labels[0, 1]] = -math.inf
    logits.requires_grad_()
    loss = ours(batch, logits)
    assert loss.item() == math.inf
    loss.sum().backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_autocast_changes_nothing() -> None:
    batch = lattices([(5, 3), (4, 4)], dtype=torch.float32)
    expected = ours(batch, batch.logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(batch, batch.logits), expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = lattices([(5, 3), (4, 4)])
    whole = ours(batch, batch.logits)
    slopes = gradients(whole, batch.logits)
    monkeypatch.setitem(nodes._BLOCK, "cpu", 2 * 5 * 6)
    in_parts = ours(batch, batch.logits)
    assert torch.equal(in_parts, whole) and torch.equal(gradients(in_parts, batch.logits)[0], slopes[0])


def test_the_logits_stay_as_they_are_and_the_gradient_can_be_taken_twice() -> None:
    batch = lattices([(5, 3), (4, 4)])
    before = batch.logits.detach().clone()
    loss = ours(batch, batch.logits).sum()
    first, second = (torch.autograd.grad(loss, batch.logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, batch.logits)


@pytest.mark.parametrize(
    ("logits", "labels", "lengths", "label_lengths", "words"),
    [
        ((2, 4, 3), (2, 2), [4, 4], [2, 2], r"\(B, T, U \+ 1, V\)"),
        ((2, 4, 3, 5), (2, 3), [4, 4], [2, 2], r"\(B, T, U \+ 1, V\)"),
        ((2, 4, 3, 5), (1, 2), [4, 4], [2, 2], r"\(2, U\)"),
        ((2, 4, 3, 5), (2, 2), [4], [2, 2], r"lengths \(1,\)"),
        ((2, 4, 3, 5), (2, 2), [4, 5], [2, 2], "between 1 and T = 4"),
        ((2, 4, 3, 5), (2, 2), [4, 0], [2, 2], "between 1 and T = 4"),
        ((2, 4, 3, 5), (2, 2), [4, 4], [2, 3], "between 0 and U = 2"),
        ((2, 4, 3, 5), (2, 2), [4, 4], [2, -1], "between 0 and U = 2"),
        ((2, 4, 3, 5), (2, 2), [4.0, 4.0], [2, 2], "whole numbers"),
    ],
)
def test_mismatches_are_named(logits: tuple, labels: tuple, lengths: list, label_lengths: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transducer_loss(
            torch.zeros(logits),
            torch.ones(labels, dtype=torch.int64),
            torch.tensor(lengths),
            torch.tensor(label_lengths),
        )


@pytest.mark.parametrize("label", [-1, 0, 6, 100])
def test_labels_outside_the_vocabulary_are_named(label: int) -> None:
    batch = lattices([(4, 3), (3, 2)])
    batch.labels[1, 1] = label
    with pytest.raises(UserError, match=f"labels: {label} is not allowed.*0 to 5, without the blank 0"):
        ours(batch, batch.logits)
    with pytest.raises(ValueError, match="blank 6 must lie between 0 and V - 1 = 5"):
        transducer_loss(batch.logits, *batch.targets, blank=6)


def test_windows_that_no_path_leads_through_are_refused() -> None:
    batch = lattices([(4, 3)])
    good = ranges_of(batch, 2)

    def late(ranges: torch.Tensor) -> torch.Tensor:
        return ranges + 1

    def early(ranges: torch.Tensor) -> torch.Tensor:
        return ranges - ranges[:, :, :1] + torch.arange(2)

    def scattered(ranges: torch.Tensor) -> torch.Tensor:
        return ranges * torch.tensor([1, 0])

    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [late, early, scattered]
    for change in changes:
        with pytest.raises(ValueError, match="windows of consecutive rows"):
            pruned(batch, batch.logits, change(good).clamp(0, 3))
    with pytest.raises(ValueError, match="do not match"):
        pruned_loss(batch.logits, batch.labels, good, batch.lengths, batch.label_lengths)


def test_backends_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="'warp' is unknown; allowed are auto, torch, torchaudio, k2"):
        backends.pick_backend("warp", backends.FULL, cpu)
    with pytest.raises(UserError, match="'torchaudio' is unknown; allowed are auto, torch, k2"):
        backends.pick_backend("torchaudio", backends.PRUNED, cpu)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    for name, words in (("k2", "k2 is not installed; see https://"), ("torchaudio", "pip install torchaudio")):
        with pytest.raises(UserError, match=words):
            backends.pick_backend(name, backends.FULL, cpu)
    assert backends.pick_backend("auto", backends.FULL, cpu) == "torch"


def test_auto_takes_another_package_only_where_it_has_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for broken in ("k2", "torchaudio"):
        monkeypatch.setitem(sys.modules, broken, None)  # Importing it raises ImportError.
    assert backends.pick_backend("auto", backends.FULL, gpu) == "torch"
    for cuda, expected in ((True, "k2"), (False, "torch")):
        monkeypatch.setitem(sys.modules, "k2", type(sys)("k2"))
        monkeypatch.setattr(sys.modules["k2"], "with_cuda", cuda, raising=False)
        assert backends.pick_backend("auto", backends.PRUNED, gpu) == expected
