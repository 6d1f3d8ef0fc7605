"""Consistency of CTC posteriors between subnets that see different views of the same speech (CR-CTC, arXiv 2410.05101).

With p_i(t) the posteriors of subnet i for frame t and sg = stop gradient:

    C_ij = sum_t KL(sg p_i(t) || p_j(t))

C_ij pulls subnet j towards subnet i. Both directions of a pair are two terms, each with a gradient for one subnet only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation

_KL = Divergence("kl")


def ctc_consistency(others: Iterable[Tensor], logits: Tensor, lengths: Tensor) -> Tensor:
    """Sum of C_ij over the other subnets i, for the subnet j with these logits.

    others: CTC logits (B, T, V) of each other subnet; they get no gradient. logits: (B, T, V), before the softmax.
    lengths: (B,) int, number of valid frames of each utterance; later frames are not read.
    Returns a scalar, float32 or float64: summed over valid frames, averaged over utterances (nats per utterance, as ESPnet's
    CTC loss), 0 without others. Raises ValueError on shapes that do not match.
    """
    parts = [ctc_frame_distillation(other, logits, lengths, _KL) for other in others]
    return torch.stack(parts).sum() if parts else logits.new_zeros(())
