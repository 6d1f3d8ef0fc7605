"""Sum over all paths of a transducer's lattice, and the occupation of each transition (Graves 2012, arXiv 1211.3711).

With blank(t, u) and label(t, u) the log-probabilities of leaving node (t, u) by the blank and by the next label,

    alpha(t, u) = log( exp(alpha(t-1, u) + blank(t-1, u)) + exp(alpha(t, u-1) + label(t, u-1)) ),    alpha(0, 0) = 0

is the sum over all partial paths from the start to the node. beta, the sum over all partial paths from the node to the
end, is the same recursion from the other end. A transition from n to m has the occupation
exp(alpha(n) + log p + beta(m) - total). This is the probability that an alignment of the transcript uses the
transition. It is also minus the gradient of the loss with respect to the transition's log-probability.

All nodes of an anti-diagonal t + u = d are computed at once from the previous one. There are two kernel calls for each
of the T + U anti-diagonals, for any batch size, or one for all of them where Triton and a GPU are there
(:mod:`espnet_todm.losses.transducer_kernel`), for three reasons:
- Tensors of transitions are stored by anti-diagonal. This only takes strides: node (t, u) of utterance n lies
  at [t + u, n, u], so one copy into such a view skews a rectangle and every anti-diagonal is contiguous.
- After the last node of an utterance, its path continues at no cost and in only one way to the last node of the
  rectangle of the whole batch. All utterances therefore end at the same node.
- The reversed lattices then have the same size, and beta is computed as a second half of the batch.

The recursion runs in float64. It only stores a few numbers per node. With logits of 1e4 the sums along a path are in
the millions, and float32 would keep no digit after the decimal point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_todm.losses.transducer_kernel import has_kernel, sweep
from espnet_todm.losses.transducer_targets import Targets

DTYPE = torch.float64
NEVER = float("-inf")


class Occupation(NamedTuple):
    """Probability of each transition, given the transcript; no gradient. Zero outside the utterance.

    label: (B, T, U), from (t, u) to (t, u + 1); k2 calls it px_grad, with the last two dimensions in the other order.
    blank: (B, T, U + 1), from (t, u) to (t + 1, u); k2's py_grad.
    """

    label: Tensor
    blank: Tensor


def lattice_loss(blank: Tensor, label: Tensor, targets: Targets) -> tuple[Tensor, Occupation]:
    """Negative log-probability of each utterance's transcript, summed over its alignments.

    blank: (B, T, U + 1), label: (B, T, U), log-probabilities of the transitions, any float dtype; ``-inf`` forbids one.
        Nodes outside an utterance are not read.
    Returns the loss (B,) in the dtype of ``blank``, differentiable once, and the occupation. If every path of an
    utterance is forbidden, its loss is inf and has no gradient.
    """
    loss, label_occupation, blank_occupation = _Lattice.apply(blank, label, targets)
    return loss, Occupation(label_occupation, blank_occupation)


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blank: Tensor, label: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,) and the occupations of labels (B, T, U) and blanks (B, T, U + 1)."""
        valid = targets.valid_nodes(blank.shape[1])
        blank_moves, label_moves = _closed(blank, label, targets, valid)
        alpha, beta = _both_directions(blank_moves, label_moves)
        total = alpha[:, -1:, -1:]
        loss = -total.reshape(-1).to(blank.dtype)
        # If no path is allowed, the difference below would be one of two infinities.
        total = total.clamp(min=torch.finfo(DTYPE).min)
        through_blank = blank_moves.add_(alpha[:, :-1]).add_(beta[:, 1:]).sub_(total).exp_()
        through_label = label_moves.add_(alpha[:, :, :-1]).add_(beta[:, :, 1:]).sub_(total).exp_()
        blank_occupation = through_blank.to(blank.dtype).masked_fill_(~valid, 0.0)
        label_occupation = through_label[:, :-1].to(blank.dtype).masked_fill_(~valid[:, :, 1:], 0.0)
        ctx.save_for_backward(blank_occupation, label_occupation)
        ctx.dtypes = blank.dtype, label.dtype
        ctx.mark_non_differentiable(label_occupation, blank_occupation)
        return loss, label_occupation, blank_occupation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
        """gradient (B,) of the loss."""
        factor = -gradient.reshape(-1, 1, 1)
        blank, label = (factor * occupation for occupation in ctx.saved_tensors)
        return blank.to(ctx.dtypes[0]), label.to(ctx.dtypes[1]), None


def _closed(blank: Tensor, label: Tensor, targets: Targets, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions of the whole rectangle, in which every utterance's path continues to node (T, U) in one way at no
    cost.

    blank (B, T, U + 1), label (B, T, U) -> blank (B, T, U + 1), label (B, T + 1, U), new tensors.
    The path goes from (T_b, U_b) along the frames to (T, U_b), then along the labels.
    """
    batch, frames, rows = blank.shape
    u = torch.arange(rows, device=blank.device)
    last = targets.label_lengths.unsqueeze(1)
    behind = torch.arange(frames, device=blank.device) >= targets.lengths.unsqueeze(1)
    blank_moves = blank.to(DTYPE).masked_fill(~valid, NEVER)
    blank_moves.masked_fill_(behind.unsqueeze(2) & (u == last).unsqueeze(1), 0.0)
    label_moves = torch.full((batch, frames + 1, rows - 1), NEVER, dtype=DTYPE, device=blank.device)
    # A label leaves (t, u) only if (t, u + 1) is a node.
    label_moves[:, :-1] = label.to(DTYPE).masked_fill(~valid[:, :, 1:], NEVER)
    label_moves[:, -1].masked_fill_(u[:-1] >= last, 0.0)
    return blank_moves, label_moves


def _both_directions(blank: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta (B, T + 1, U + 1) for blank (B, T, U + 1) and label (B, T + 1, U)."""
    batch = len(blank)
    sums = _from_the_start(*(torch.cat([x, x.flip(1, 2)]) for x in (blank, label)))
    return sums[:batch], sums[batch:].flip(1, 2)


def _from_the_start(blank: Tensor, label: Tensor) -> Tensor:
    """alpha (N, T + 1, U + 1) of N lattices: blank (N, T, U + 1), label (N, T + 1, U)."""
    count, frames, rows = blank.shape
    diagonals = frames + rows - 1
    # Into row u of anti-diagonal d + 1: moves[d, 0, n, u] is the label from (t, u - 1), moves[d, 1, n, u] the blank.
    moves = torch.full((diagonals, 2, count, rows), NEVER, dtype=DTYPE, device=blank.device)
    by_diagonal, by_utterance = 2 * count * rows, rows
    strides = (by_utterance, by_diagonal, by_diagonal + 1)
    moves.as_strided(label.shape, strides, 1).copy_(label)
    moves.as_strided(blank.shape, strides, count * rows).copy_(blank)
    # One column of -inf before row 0, so that row u - 1 exists for every u.
    width = rows + 1
    alpha = torch.full((diagonals + 1, count, width), NEVER, dtype=DTYPE, device=blank.device)
    alpha[0, :, 1] = 0.0
    (sweep if has_kernel(blank.device) else _sweep)(alpha, moves)
    return alpha.as_strided((count, frames + 1, rows), (width, count * width, count * width + 1), 1)


def _sweep(alpha: Tensor, moves: Tensor) -> None:
    """Fill alpha (D + 1, N, U + 2) from its first anti-diagonal on. moves: (D, 2, N, U + 1)."""
    diagonals, _, count, rows = moves.shape
    width = rows + 1
    # The sources of both transitions are two views of one slice, shifted by a row.
    sources = alpha.as_strided((diagonals, 2, count, rows), (count * width, 1, width, 1)).unbind(0)
    reached = torch.empty_like(moves[0])
    by_label, by_blank = reached.unbind(0)
    for source, move, target in zip(sources, moves.unbind(0), alpha[1:, :, 1:].unbind(0)):
        torch.add(source, move, out=reached)
        torch.logaddexp(by_label, by_blank, out=target)
