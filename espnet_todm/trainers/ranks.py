"""Means over the utterances or frames of all ranks (processes that train one model together).

ESPnet weighs the loss of each rank by the rank's share of all utterances. A mean over utterances is then the mean over
those of all ranks. Other means need a factor, so that ranks have the gradient that one process has for the joined batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def several_ranks() -> bool:
    """Whether this process is one of several ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks. The tensor itself is changed. The device is not waited for."""
    if several_ranks():
        torch.distributed.all_reduce(values)
    return values


def per_frame(loss: Tensor, lengths: Tensor, utterances: int) -> Tensor:
    """The mean over output frames of a loss that is a sum over frames, averaged over utterances; both are scalars.

    The value is the mean over the frames of all ranks, so that a weight which depends on it is the same on all ranks. The
    gradient is that of this rank's part.

    lengths: (B,) int, output frames of the utterances that the loss is of. utterances: number of utterances in the rank's
    batch, of which the loss may only be of some.
    """
    own, frames = len(lengths), lengths.sum()
    if not several_ranks():
        return loss * (own / frames.clamp(min=1))
    total, all_frames, all_utterances = over_ranks(
        torch.stack([loss.detach() * own, frames.to(loss.dtype), _number(utterances, loss)])
    )
    part = loss * (all_utterances * (own / utterances) / all_frames.clamp(min=1))
    return part + (total / all_frames.clamp(min=1) - part).detach()


def per_own_utterance(loss: Tensor, own: int, utterances: int) -> Tensor:
    """This rank's part of the mean over the utterances that a subnet trains on; both are scalars.

    loss: the mean over ``own`` utterances, all that the subnet trains on among the ``utterances`` of this rank's batch.
    """
    if not several_ranks():
        return loss
    all_own, all_utterances = over_ranks(torch.stack([_number(own, loss), _number(utterances, loss)]))
    return loss * (all_utterances * (own / utterances) / all_own)


def _number(value: int, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=like.dtype, device=like.device)
