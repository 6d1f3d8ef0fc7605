"""Views: different SpecAugment masks of the same speech. Each is a function of a seed, the same on every rank."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Optional

import torch
from espnet2.asr.specaug.specaug import SpecAug
from torch import Tensor

from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.models.batch import Features
from espnet_todm.models.spec_augment import draw_masks
from espnet_todm.util.host import on_both, values

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # features (B, T, F), lengths (B,) -> the same, changed


@contextmanager
def seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Inside, the generators of the CPU and of ``device`` have this seed. Afterwards they go on as if nothing was drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(
            random.Random(seed).getrandbits(63)
        )  # seeding by text is stable across platforms and versions
        yield


def warp_and_masks(specaug: Any) -> tuple[Optional[Augment], Optional[Augment]]:
    """SpecAugment's time warp, which all views must share since their frames are compared, and its masks; None: has none."""
    if not isinstance(specaug, SpecAug):
        return None, specaug
    masks = [part for part in (specaug.freq_mask, specaug.time_mask) if part is not None]
    return specaug.time_warp, partial(_in_turn, masks) if masks else None


def _in_turn(parts: list[Augment], features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    for part in parts:
        features, lengths = part(features, lengths)
    return features, lengths


def augmented(augment: Augment, seed: str, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A view of features (B, T, F), which stay as they are. ESPnet's SpecAugment changes its input."""
    with seeded(seed, features.device):
        return augment(features.clone(), lengths)


def warped(features: Features, warp: Optional[Augment], seed: str) -> Features:
    """Features with a time warp, if there is one."""
    return features if warp is None else Features(*augmented(warp, seed, features.hidden, features.lengths))


def masked_frames(subsampled: SubsampledFeatures, seed: str, frames_per_mask: int, width: int) -> SubsampledFeatures:
    """A view of subsampled features, some of whose frames are 0.

    An utterance of T frames gets 1 to max(T // frames_per_mask, 1) masks of 1 to ``width`` frames.
    """
    hidden, lengths = subsampled.hidden, subsampled.lengths.to(subsampled.hidden.device)
    most = on_both(lambda x: (x // frames_per_mask).clamp_min(1), lengths)
    with seeded(seed, hidden.device):
        slots = max(values(most))
        masked = draw_masks(torch.ones_like(most), most, slots, width, lengths, hidden.size(1))
    return subsampled.with_hidden(hidden.masked_fill(masked.unsqueeze(-1), 0.0))
