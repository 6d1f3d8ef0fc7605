"""Pruning of the transducer lattice: a loss without a joiner selects the nodes on which the joiner runs.

Pruned RNN-T (Kuang et al. 2022, arXiv 2206.13236), as in k2. If the joiner is only a sum of an acoustic part am and a
language part lm, the scores of all nodes can be normalised without a tensor (B, T, U + 1, V), since

    sum_v exp(am(t, v) + lm(u, v)) = (exp(am) exp(lm)^T)(t, u)

is a matrix product. This simple loss is trained together with the real one. The occupations of its lattice show where
the alignments are. Each frame keeps the window of S rows of the lattice with the largest occupation.

Usage: simple, occupation = simple_loss(...); ranges = prune_ranges(occupation, ...); the joiner runs on
gather_ranges(...); pruned_loss(joiner's logits, labels, ranges, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_todm.errors import UserError
from espnet_todm.losses.transducer_lattice import Occupation, lattice_loss
from espnet_todm.losses.transducer_targets import Targets, check_targets
from espnet_todm.precision import compute_dtype
from espnet_todm.util.host import places, values

_UNDERFLOW = 1e-20
"""Products of exponentials below this may have lost terms by underflow; such nodes are normalised one by one."""

_BLOCK = 1 << 22
"""Elements per block of the scores of those nodes."""


def simple_loss(
    am: Tensor,
    lm: Tensor,
    labels: Tensor,
    lengths: Tensor,
    label_lengths: Tensor,
    blank: int = 0,
    am_scale: float = 0.0,
    lm_scale: float = 0.0,
) -> tuple[Tensor, Occupation]:
    """Loss of each utterance with the joiner am + lm, and the occupation of its alignments (k2's
    ``rnnt_loss_smoothed``).

    am: (B, T, V), lm: (B, U + 1, V), parts of the logits, any float dtype. The computation is in float32 or float64.
    labels, lengths, label_lengths, blank: as for ``transducer_loss``.
    am_scale, lm_scale: weights of log-probabilities from one part alone, so that each part learns by itself. A
        transition has (1 - am_scale - lm_scale) joint + am_scale * (am and the average of lm over the
        valid rows of the batch) + lm_scale * lm.
    Returns (B,) in nats, differentiable once, and the occupation for ``prune_ranges``.
    Raises ValueError on shapes that do not match, UserError on labels and scales out of range.
    """
    batch, frames, vocabulary = _check_parts(am, lm, labels)
    check_scales(am_scale, lm_scale)
    targets = check_targets(labels, lengths, label_lengths, blank, (batch, frames, vocabulary), am.device)
    dtype = compute_dtype(am)
    valid = targets.valid_nodes(frames)
    am = am.to(dtype).masked_fill(~valid[:, :, :1], 0.0)
    lm = lm.to(dtype).masked_fill(~valid[:, 0].unsqueeze(-1), 0.0)
    blanks, moves = _transitions(am, lm, _LogNormalizer.apply(am, lm), targets)
    blanks, moves = (x * (1 - am_scale - lm_scale) for x in (blanks, moves))
    if lm_scale:
        alone = _transitions(torch.zeros_like(am), lm, lm.logsumexp(-1).unsqueeze(1), targets)
        blanks, moves = blanks + lm_scale * alone[0], moves + lm_scale * alone[1]
    if am_scale:
        average = _average_log_probs(lm, valid[:, 0], sum(targets.rows))
        alone = _transitions(am, average.expand_as(lm), (am + average).logsumexp(-1).unsqueeze(2), targets)
        blanks, moves = blanks + am_scale * alone[0], moves + am_scale * alone[1]
    return lattice_loss(blanks, moves, targets)


def prune_ranges(occupation: Occupation, lengths: Tensor, label_lengths: Tensor, width: int) -> Tensor:
    """The rows of the lattice that each frame keeps (k2's ``get_rnnt_prune_ranges``; section 3.2 of the paper).

    occupation: of ``simple_loss``. lengths, label_lengths: (B,) int. width: rows to keep, 2 or more.
    Returns ranges (B, T, S) int64, consecutive rows s_t, s_t + 1, ... of each frame t. The first window of an utterance
    starts with row 0, the last one ends with row U_b. From one frame to the next, 0 <= s_{t+1} - s_t < S, so the
    windows overlap and contain a path. Without such a path the loss would be infinite. S is therefore
    - ``width``, unless an utterance has more than ``width - 1`` labels per frame; then the smallest S that contains a
      path,
    - at most U + 1, where nothing is pruned.
    Raises UserError on a width below 2.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 2:
        raise UserError(f"transducer prune width: {width!r} is not allowed; it must be a whole number, 2 or more")
    _, frames, rows = occupation.blank.shape
    device = occupation.blank.device
    least = max((-(-u // t) for u, t in zip(values(label_lengths), values(lengths))), default=0) + 1
    lengths, label_lengths = (x.to(device=device, dtype=torch.int64).unsqueeze(1) for x in (lengths, label_lengths))
    width = min(max(width, least), rows)
    # Subtract alignments that only enter the window from below within this frame.
    inside = occupation.blank.unfold(2, width, 1).sum(-1)
    inside[:, :, 1:] -= occupation.label[:, :, : rows - width]
    last = (label_lengths + 1 - width).clamp(min=0)
    t = torch.arange(frames, device=device)
    starts = torch.where(t < lengths - 1, inside.argmax(-1), last)
    starts = _steps_within(starts, width - 1)
    return starts.unsqueeze(-1) + torch.arange(width, device=device)


def gather_ranges(am_side: Tensor, lm_side: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of the joiner at the kept nodes.

    am_side: (B, T, D), lm_side: (B, U + 1, E), ranges: (B, T, S).
    Returns (B, T, S, D), a view, and (B, T, S, E).
    Raises ValueError on shapes that do not match.
    """
    batch, frames, width = ranges.shape
    if am_side.shape[:2] != (batch, frames) or am_side.dim() != 3 or lm_side.dim() != 3 or len(lm_side) != batch:
        raise ValueError(
            f"am_side {tuple(am_side.shape)} (B, T, D) and lm_side {tuple(lm_side.shape)} (B, U + 1, E) "
            f"do not match ranges {tuple(ranges.shape)} (B, T, S)"
        )
    rows = lm_side.shape[1]
    # Rows of one table: the backward of torch.gather would need a tensor (B, T, U + 1, E).
    table = lm_side.reshape(batch * rows, -1)
    index = ranges + rows * torch.arange(batch, device=ranges.device).view(-1, 1, 1)
    kept = table.index_select(0, index.reshape(-1)).view(batch, frames, width, -1)
    return am_side.unsqueeze(2).expand(-1, -1, width, -1), kept


def _check_parts(am: Tensor, lm: Tensor, labels: Tensor) -> tuple[int, int, int]:
    """B, T, V of the scores. Raises ValueError on shapes that do not match."""
    matching = am.dim() == lm.dim() == 3 and labels.dim() == 2 and am.shape[::2] == lm.shape[::2]
    if not matching or lm.shape[1] != labels.shape[1] + 1:
        raise ValueError(
            f"am {tuple(am.shape)} (B, T, V), lm {tuple(lm.shape)} (B, U + 1, V) "
            f"and labels {tuple(labels.shape)} (B, U) do not match"
        )
    return am.shape[0], am.shape[1], am.shape[2]


def check_scales(am_scale: float, lm_scale: float) -> None:
    """Raises UserError for scales of the simple loss that are out of range."""
    for key, scale, other in (
        ("am_scale", am_scale, 0.0),
        ("lm_scale", lm_scale, 0.0),
        ("am_scale", am_scale, lm_scale),
    ):
        if not 0 <= scale <= 1 - other:
            allowed = "0 to 1, together with lm_scale at most 1" if key == "am_scale" else "0 to 1"
            raise UserError(f"transducer {key}: {scale!r} is not allowed; it must be {allowed}")


def _transitions(am: Tensor, lm: Tensor, normalizer: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Log-probabilities of blanks (B, T, U + 1) and labels (B, T, U) for the logits am (B, T, V) + lm (B, U + 1, V).

    normalizer: (B, T, U + 1), or with a 1 for T or U + 1.
    """
    frames, rows = am.shape[1], lm.shape[1]
    blanks = am[:, :, targets.blank].unsqueeze(2) + lm[:, :, targets.blank].unsqueeze(1) - normalizer
    am_labels = am.gather(2, targets.labels.unsqueeze(1).expand(-1, frames, -1))
    lm_labels = lm[:, :-1].gather(2, targets.labels.unsqueeze(2)).squeeze(2)
    return blanks, am_labels + lm_labels.unsqueeze(1) - normalizer.expand(-1, -1, rows)[:, :, :-1]


def _average_log_probs(lm: Tensor, valid: Tensor, count: int) -> Tensor:
    """Logarithm (V,) of the average over the ``count`` valid rows of softmax(lm): lm (B, U + 1, V), valid (B, U + 1).

    The average is over the batch, as in k2. It is the only part of an utterance's loss that depends on the other
    utterances.
    """
    rows = lm.flatten(0, 1).index_select(0, places(valid.reshape(-1), count))
    log_probs = torch.log_softmax(rows, -1)
    return log_probs.logsumexp(0) - torch.log(valid.sum().to(lm.dtype))


def _steps_within(starts: Tensor, step: int) -> Tensor:
    """Window starts (B, T), changed so that they never decrease, rise by at most ``step`` per frame, and begin with 0.

    1. Each start becomes the minimum of itself and all later ones, so that they never decrease.
    2. Starts before a large step are raised, which spreads the step over earlier frames.
    3. A start that cannot be reached from row 0 is lowered.
    """
    starts = starts.flip(1).cummin(1)[0].flip(1)
    reachable = step * torch.arange(starts.shape[1], device=starts.device)
    starts = (starts - reachable).flip(1).cummax(1)[0].flip(1) + reachable
    return torch.minimum(starts, reachable)


class _LogNormalizer(torch.autograd.Function):
    """log sum_v exp(am(t, v) + lm(u, v)): am (B, T, V), lm (B, U + 1, V) -> (B, T, U + 1)."""

    @staticmethod
    def forward(ctx: Any, am: Tensor, lm: Tensor) -> Tensor:
        am_top, lm_top = (x.amax(-1, keepdim=True) for x in (am, lm))
        with torch.autocast(am.device.type, enabled=False):
            product = torch.bmm((am - am_top).exp_(), (lm - lm_top).exp_().transpose(1, 2))
        normalizer = product.log().add_(am_top).add_(lm_top.transpose(1, 2))
        nodes = (product < _UNDERFLOW).nonzero(as_tuple=True)
        for b, t, u in _blocks_of(nodes, am.shape[-1]):
            normalizer[b, t, u] = torch.logsumexp(am[b, t] + lm[b, u], -1)
        ctx.save_for_backward(am, lm, product, normalizer, *nodes)
        return normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """gradient (B, T, U + 1). The share of v at a node is exp(am + lm - normalizer); matrix products sum it over
        nodes.
        """
        am, lm, product, normalizer, *nodes = ctx.saved_tensors
        am_part, lm_part = ((x - x.amax(-1, keepdim=True)).exp_() for x in (am, lm))
        share = torch.where(product < _UNDERFLOW, torch.zeros_like(product), gradient / product)
        with torch.autocast(am.device.type, enabled=False):
            am_gradient = torch.bmm(share, lm_part).mul_(am_part)
            lm_gradient = torch.bmm(share.transpose(1, 2), am_part).mul_(lm_part)
        for b, t, u in _blocks_of(tuple(nodes), am.shape[-1]):
            shares = (am[b, t] + lm[b, u] - normalizer[b, t, u, None]).exp_() * gradient[b, t, u, None]
            am_gradient.index_put_((b, t), shares, accumulate=True)
            lm_gradient.index_put_((b, u), shares, accumulate=True)
        return am_gradient, lm_gradient


def _blocks_of(nodes: tuple[Tensor, ...], vocabulary: int) -> Iterator[tuple[Tensor, ...]]:
    """Successive blocks of the indices (b, t, u) of some nodes."""
    size = max(1, _BLOCK // vocabulary)
    for start in range(0, len(nodes[0]), size):
        yield tuple(index[start : start + size] for index in nodes)
