"""In-place distillation: a subnet learns from the posteriors of the max subnet of the same step, for the same speech."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.transducer_nodes import collapse
from espnet_todm.losses.transducer_targets import Targets, check_ranges, check_targets
from espnet_todm.util.checks import check_choice
from espnet_todm.util.host import values

SCALES = ("lattice", "path")


def ctc_frame_distillation(
    teacher_logits: Tensor, student_logits: Tensor, lengths: Tensor, divergence: Divergence
) -> Tensor:
    """Divergence between the frame posteriors of two CTC heads, over the whole vocabulary including the blank.

    teacher_logits, student_logits: (B, T, V), before the softmax; the teacher's get no gradient.
    lengths: (B,) int, number of valid frames of each utterance; later frames are not read.
    Returns a scalar, float32 or float64: summed over valid frames, averaged over utterances (nats per utterance).
    ESPnet's CTC loss has the same scale, so the weight between the two does not depend on the length.
    Raises ValueError on shapes that do not match.
    """
    if teacher_logits.shape != student_logits.shape or student_logits.dim() != 3:
        raise ValueError(
            f"teacher_logits {tuple(teacher_logits.shape)} and student_logits {tuple(student_logits.shape)} "
            "must have one shape (B, T, V)"
        )
    batch, frames, _ = student_logits.shape
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(f"lengths {tuple(lengths.shape)} {lengths.dtype} must be whole numbers of shape ({batch},)")
    numbers = values(lengths)
    if not all(0 <= number <= frames for number in numbers):
        raise ValueError(f"lengths {numbers} must lie between 0 and T = {frames}")
    lengths = lengths.to(student_logits.device)
    valid = torch.arange(frames, device=student_logits.device) < lengths.unsqueeze(1)
    return divergence(teacher_logits, student_logits, valid, sum(numbers)).sum() / max(batch, 1)


def token_distillation(
    teacher_logits: Tensor,
    student_logits: Tensor,
    lengths: Tensor,
    divergence: Divergence,
    per_token: bool = False,
) -> Tensor:
    """Divergence between the next-token posteriors of two attention decoders, each given the correct previous tokens.

    teacher_logits, student_logits: (B, U, V). lengths: (B,) int, tokens of each utterance, including its end.
    Otherwise as :func:`ctc_frame_distillation`: summed over tokens, averaged over utterances, which is the scale of
    ESPnet's attention loss. ``per_token`` averages over all tokens instead, as ESPnet does with
    ``length_normalized_loss``.
    """
    loss = ctc_frame_distillation(teacher_logits, student_logits, lengths, divergence)
    return loss * len(lengths) / lengths.sum().clamp(min=1) if per_token else loss


def lattice_distillation(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    lengths: Tensor,
    label_lengths: Tensor,
    divergence: Divergence,
    ranges: Optional[Tensor] = None,
    blank: int = 0,
    scale: str = "lattice",
) -> Tensor:
    """Divergence between two transducers at the nodes of a lattice, over the classes {next label, blank, rest}.

    The three classes are those of Panchapagesan et al. (arXiv 2011.06110): at node (t, u), the probabilities of the
    next label, of the blank, and of all other labels together. The last row u = U_b has no next label, only {blank,
    rest}.

    teacher_logits, student_logits: (B, T, U + 1, V), or with ``ranges`` (B, T, S, V) on a pruned lattice, before the
        softmax, any float dtype; the teacher's get no gradient. Nodes outside an utterance are not read.
    labels: (B, U) int, with any padding. lengths, label_lengths: (B,) int.
    ranges: (B, T, S) int64, the rows that each frame keeps (``prune_ranges``), the same for teacher and student.
    scale: how the nodes of an utterance are reduced.
        lattice: their sum, as in the paper. It grows with T (U + 1) or T S, although alignments rarely visit most of
            these nodes, and may be tens of times the transducer loss.
        path: their average times T_b + U_b, the number of nodes that an alignment visits. This is the scale of the
            transducer loss for any length, pruned or not, so a weight between the two losses keeps its meaning.
    Returns a scalar, float32 or float64, averaged over utterances (nats per utterance, as the transducer loss).
    Raises ValueError on shapes and lengths that do not match, UserError on labels outside the vocabulary and on
    ``scale``.
    """
    check_choice("transducer distillation scale", scale, SCALES)
    targets, next_labels, valid = _lattice(
        teacher_logits, student_logits, labels, lengths, label_lengths, ranges, blank
    )
    teacher, student = (collapse(x, next_labels, targets) for x in (teacher_logits.detach(), student_logits))
    per_utterance = divergence(teacher, student, valid, targets.nodes(student_logits.shape[2])).sum((1, 2))
    if scale == "path":
        per_utterance = per_utterance * (targets.lengths + targets.label_lengths) / valid.sum((1, 2))
    return per_utterance.sum() / max(len(labels), 1)


def _lattice(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    lengths: Tensor,
    label_lengths: Tensor,
    ranges: Optional[Tensor],
    blank: int,
) -> tuple[Targets, Tensor, Tensor]:
    """The targets and, for each node that has logits, its next label and whether it lies inside its utterance
    (B, T, S).
    """
    shape = tuple(student_logits.shape)
    if teacher_logits.shape != student_logits.shape or len(shape) != 4:
        raise ValueError(
            f"teacher_logits {tuple(teacher_logits.shape)} and student_logits {shape} must have one shape (B, T, S, V)"
        )
    nodes = (*shape[:2], labels.shape[-1] + 1) if ranges is None else tuple(ranges.shape)
    if shape[:3] != nodes or labels.dim() != 2:
        expected = "ranges (B, T, S)" if ranges is not None else f"labels {tuple(labels.shape)} (B, U), S being U + 1,"
        raise ValueError(f"student_logits {shape} (B, T, S, V) must match {expected} of {nodes} nodes")
    sizes = (shape[0], shape[1], shape[3])
    targets = check_targets(labels, lengths, label_lengths, blank, sizes, student_logits.device)
    valid = targets.valid_nodes(shape[1])
    if ranges is None:
        return targets, targets.next_labels().unsqueeze(1).expand(nodes), valid
    ranges = check_ranges(ranges, targets)
    return targets, targets.at_ranges(ranges), valid.gather(2, ranges)
