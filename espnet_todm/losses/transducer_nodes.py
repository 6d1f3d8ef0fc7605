"""Reduces the scores of a whole vocabulary at each lattice node to the two or three numbers that a loss needs.

The logits (B, T, S, V) are by far the largest tensor of a transducer's training step. These functions read them in
blocks. On a CPU a block is part of one utterance, is not copied, and stays in the cache. On a GPU it is gathered from the
nodes of all utterances, so that the number of launches does not grow with their number. The results are equal. The only
tensor of their size that is kept is the gradient, which the backward computes from the logits. Nodes outside an utterance
are not read and get a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_todm.losses.transducer_targets import Targets
from espnet_todm.precision import compute_dtype
from espnet_todm.util.host import places

_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 25}
"""Elements per block: on a CPU a block stays in the cache, on a GPU there are few launches."""

Index = Union[tuple[int, slice, slice], tuple[Tensor, Tensor, Tensor]]


def transition_log_probs(logits: Tensor, next_labels: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the blank and of the next label at each node.

    logits: (B, T, S, V), any float dtype, with S = U + 1 or the width of a pruned lattice.
    next_labels: (B, T, S) int64, the blank where there is no next label.
    Returns blank and label, (B, T, S) each, float32 or float64, 0 outside the utterance; differentiable once.
    """
    blank, label = _TransitionLogProbs.apply(logits, next_labels, targets)
    return blank, label


def collapse(logits: Tensor, next_labels: Tensor, targets: Targets) -> Tensor:
    """Logits of the three classes {next label, blank, rest} at each node (Panchapagesan et al., arXiv 2011.06110).

    logits and next_labels as above. Returns (B, T, S, 3), float32 or float64, 0 outside the utterance; their softmax
    gives the probabilities of the classes. The rest is summed directly in log space. Its logit and gradient are
    therefore exact even for a very small rest, unlike 1 - P(label) - P(blank). An empty class has the logit -inf: the
    next label where there is none, and the rest if the vocabulary has no other labels.
    """
    classes: Tensor = _Collapse.apply(logits, next_labels, targets)
    return classes


class _TransitionLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, next_labels: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(logits)
        blank, label = (torch.zeros(logits.shape[:3], dtype=dtype, device=logits.device) for _ in range(2))
        ctx.blocks = list(_blocks(logits, targets))
        for index in ctx.blocks:
            log_probs = torch.log_softmax(logits[index], -1, dtype=dtype)
            blank[index] = log_probs[..., targets.blank]
            label[index] = log_probs.gather(-1, next_labels[index].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits, next_labels)
        ctx.targets = targets
        return blank, label

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blank: Tensor, label: Tensor) -> tuple[Tensor, None, None]:
        """blank, label (B, T, S): gradients of the two log-probabilities. The gradient of logit v is own - sum *
        softmax(v).
        """
        logits, next_labels = ctx.saved_tensors
        gradient = _empty_gradient(logits, ctx.targets)
        both = (blank + label).unsqueeze(-1)
        for index in ctx.blocks:
            slope = torch.softmax(logits[index], -1, dtype=blank.dtype).mul_(both[index]).neg_()
            slope[..., ctx.targets.blank] += blank[index]
            slope.scatter_add_(-1, next_labels[index].unsqueeze(-1), label[index].unsqueeze(-1))
            gradient[index] = slope
        return gradient, None, None


class _Collapse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, next_labels: Tensor, targets: Targets) -> Tensor:
        dtype = compute_dtype(logits)
        classes = torch.zeros((*logits.shape[:3], 3), dtype=dtype, device=logits.device)
        ctx.blocks = list(_blocks(logits, targets))
        for index in ctx.blocks:
            block, chosen = logits[index].to(dtype), next_labels[index].unsqueeze(-1)
            label = block.gather(-1, chosen).masked_fill_(chosen == targets.blank, float("-inf"))
            others = _without(block, chosen, targets.blank)
            rest = torch.logsumexp(others, -1, keepdim=True)
            classes[index] = torch.cat([label, block[..., targets.blank, None], rest], -1)
        ctx.save_for_backward(logits, next_labels)
        ctx.targets = targets
        return classes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        """slopes (B, T, S, 3): gradients of the three logits. Each label of the rest gets its share of the rest's
        gradient.
        """
        logits, next_labels = ctx.saved_tensors
        gradient = _empty_gradient(logits, ctx.targets)
        for index in ctx.blocks:
            chosen = next_labels[index].unsqueeze(-1)
            others = _without(logits[index].to(slopes.dtype), chosen, ctx.targets.blank)
            label, blank, rest = slopes[index].split(1, -1)
            slope = torch.softmax(others, -1).nan_to_num_().mul_(rest)
            slope[..., ctx.targets.blank, None] = blank
            # Without a next label the index is the blank's, whose gradient must stay.
            slope.scatter_add_(-1, chosen, label.masked_fill(chosen == ctx.targets.blank, 0.0))
            gradient[index] = slope
        return gradient, None, None


def _without(block: Tensor, chosen: Tensor, blank: int) -> Tensor:
    """A copy of (..., V) in which the blank and the chosen labels (..., 1) have the logit -inf."""
    others = block.scatter(-1, chosen, float("-inf"))
    others[..., blank] = float("-inf")
    return others


def _blocks(logits: Tensor, targets: Targets) -> Iterator[Index]:
    """Indices (utterance, frames, nodes) of successive blocks that cover exactly the nodes of each utterance.

    In a pruned lattice, an utterance with fewer rows than the width keeps all its rows, starting with the first.
    """
    width, vocabulary = logits.shape[2:]
    size = _BLOCK.get(logits.device.type, _BLOCK["cuda"])
    if logits.device.type != "cpu":
        indices = _nodes(logits, targets)
        yield from zip(*(index.split(max(1, size // vocabulary)) for index in indices))
        return
    for utterance, (frames, rows) in enumerate(zip(targets.frames, targets.rows)):
        rows = min(rows, width)
        step = max(1, size // (rows * vocabulary))
        for start in range(0, frames, step):
            yield utterance, slice(start, min(start + step, frames)), slice(0, rows)


def _nodes(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Utterance, frame and row among the S rows of the nodes of all utterances, (nodes,) int64 each."""
    frames, width = logits.shape[1:3]
    valid = targets.valid_nodes(frames)[:, :, :width]
    nodes = places(valid.reshape(-1), targets.nodes(width))
    in_frames = torch.div(nodes, width, rounding_mode="floor")
    return torch.div(in_frames, frames, rounding_mode="floor"), in_frames % frames, nodes % width


def _empty_gradient(logits: Tensor, targets: Targets) -> Tensor:
    """A tensor like ``logits``, zero outside the utterances and not defined inside."""
    if logits.device.type != "cpu" and targets.nodes(logits.shape[2]) < logits.shape[:3].numel():
        return torch.zeros_like(logits, memory_format=torch.contiguous_format)
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.device.type == "cpu":
        for utterance, (frames, rows) in enumerate(zip(targets.frames, targets.rows)):
            gradient[utterance, frames:] = 0.0
            gradient[utterance, :frames, rows:] = 0.0
    return gradient
