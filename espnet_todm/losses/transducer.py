"""Transducer (RNN-T) loss on the full lattice and on a pruned lattice, with several implementations.

The loss is the negative log-probability of the transcript, summed over its alignments (Graves 2012, arXiv 1211.3711).
On the pruned lattice (Kuang et al. 2022, arXiv 2206.13236) each frame keeps a window of consecutive rows of the
lattice. The sum is over the alignments inside these windows, so the loss is never below the full loss.
``transducer_pruning`` selects the windows, ``transducer_lattice`` has the recursion for both.

Backends: ``torch`` is our own. It needs no extra package, runs on CPU and GPU, and allocates at most one tensor of the
size of the logits, their gradient. ``torchaudio`` (full lattice) and ``k2`` (both) have one GPU kernel for the whole
recursion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_todm.losses.transducer_backends import FULL, PRUNED, k2_full, k2_pruned, pick_backend, torchaudio_full
from espnet_todm.losses.transducer_lattice import NEVER, lattice_loss
from espnet_todm.losses.transducer_nodes import transition_log_probs
from espnet_todm.losses.transducer_targets import Targets, check_ranges, check_targets


def transducer_loss(
    logits: Tensor, labels: Tensor, lengths: Tensor, label_lengths: Tensor, blank: int = 0, backend: str = "auto"
) -> Tensor:
    """Loss of each utterance on the full lattice, in nats.

    logits: (B, T, U + 1, V), before the softmax, any float dtype. The computation is in float32 or float64, also under
        autocast.
    labels: (B, U) int, with any padding. lengths, label_lengths: (B,) int, frames (1 to T) and labels (0 to U).
    Nodes outside an utterance are not read and get no gradient. U may be larger than T.
    backend: auto, torch, torchaudio or k2.
    Returns (B,), float32 or float64; differentiable once.
    Raises ValueError on shapes and lengths that do not match, UserError on labels outside the vocabulary, and on a
    backend that is unknown or not installed.
    """
    if logits.dim() != 4 or labels.dim() != 2 or logits.shape[2] != labels.shape[1] + 1:
        raise ValueError(
            f"logits {tuple(logits.shape)} must have shape (B, T, U + 1, V) for labels {tuple(labels.shape)} (B, U)"
        )
    batch, frames, _, vocabulary = logits.shape
    targets = check_targets(labels, lengths, label_lengths, blank, (batch, frames, vocabulary), logits.device)
    chosen = pick_backend(backend, FULL, logits.device)
    if chosen == "torchaudio":
        return torchaudio_full(logits, targets)
    if chosen == "k2":
        return k2_full(logits, targets)
    next_labels = targets.next_labels().unsqueeze(1).expand(logits.shape[:3])
    blanks, moves = transition_log_probs(logits, next_labels, targets)
    return lattice_loss(blanks, moves[:, :, :-1], targets)[0]


def pruned_loss(
    logits: Tensor,
    labels: Tensor,
    ranges: Tensor,
    lengths: Tensor,
    label_lengths: Tensor,
    blank: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Loss of each utterance on a pruned lattice, in nats.

    logits: (B, T, S, V), of the nodes in ``ranges``.
    ranges: (B, T, S) int64 from ``prune_ranges``: the consecutive rows u of the lattice that a frame keeps.
    Other arguments as for ``transducer_loss``. With S = U + 1, value and gradient are the same as there.
    backend: auto, torch or k2.
    """
    if logits.dim() != 4 or logits.shape[:3] != ranges.shape or labels.dim() != 2:
        raise ValueError(
            f"logits {tuple(logits.shape)} (B, T, S, V), ranges {tuple(ranges.shape)} (B, T, S) "
            f"and labels {tuple(labels.shape)} (B, U) do not match"
        )
    batch, frames, _, vocabulary = logits.shape
    targets = check_targets(labels, lengths, label_lengths, blank, (batch, frames, vocabulary), logits.device)
    ranges = check_ranges(ranges, targets)
    if pick_backend(backend, PRUNED, logits.device) == "k2":
        return k2_pruned(logits, ranges, targets)
    blanks, moves = transition_log_probs(logits, targets.at_ranges(ranges), targets)
    blanks, moves = (_whole_rows(x, ranges, targets) for x in (blanks, moves))
    return lattice_loss(blanks, moves[:, :, :-1], targets)[0]


def _whole_rows(kept: Tensor, ranges: Tensor, targets: Targets) -> Tensor:
    """(B, T, S) on the kept nodes -> (B, T, U + 1) on all nodes. No transition leaves the other nodes, so no path uses
    them.

    Without a vocabulary dimension the full lattice is small, and one recursion serves both kinds of lattice.
    """
    rows = targets.labels.shape[1] + 1
    full = torch.full((*kept.shape[:2], rows), NEVER, dtype=kept.dtype, device=kept.device)
    return full.scatter(2, ranges, kept)
