"""In-place distillation: a subnet learns from what the max subnet of the same step says about the same speech."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_todm.losses.alpha_divergence import Divergence


def ctc_frame_distillation(
    teacher_logits: Tensor, student_logits: Tensor, lengths: Tensor, divergence: Divergence
) -> Tensor:
    """Divergence between the frame posteriors of two CTC heads, over the whole vocabulary with the blank.

    teacher_logits, student_logits: (B, T, V), before the softmax; the teacher's get no gradient.
    lengths: (B,) int, number of valid frames of each utterance; what stands beyond is never looked at.
    Returns a scalar, float32 or float64: summed over valid frames, averaged over utterances, which is the scale of
    ESPnet's CTC loss (nats per utterance), so that both can be mixed by a weight that does not depend on length.
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
    lengths = lengths.to(student_logits.device)
    if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= frames:
        raise ValueError(f"lengths {lengths.tolist()} must lie between 0 and T = {frames}")
    valid = torch.arange(frames, device=student_logits.device) < lengths.unsqueeze(1)
    return divergence(teacher_logits, student_logits, valid).sum() / max(batch, 1)
