"""Labels and lengths of transducer losses, checked once.

A node (t, u) of the lattice stands for frame t of the encoder after u labels have been emitted. From there the next
label leads to (t, u + 1) and the blank to (t + 1, u). An utterance of T frames and U labels has T (U + 1) nodes, and
may have any number of labels per frame. All paths begin at (0, 0) and end with the blank of (T - 1, U).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.util.host import copy_on_host, fact, values


@dataclass(frozen=True)
class Targets:
    """Transcripts and sizes of a batch's lattices, on the device of the scores.

    labels: (B, U) int64; positions after an utterance's labels have the blank.
    lengths, label_lengths: (B,) int64, frames T_b >= 1 and labels U_b >= 0 of each utterance.
    blank: the index of the blank.
    frames, rows: T_b and U_b + 1 as Python numbers, so that loops over utterances need no device synchronisation.
    """

    labels: Tensor
    lengths: Tensor
    label_lengths: Tensor
    blank: int
    frames: tuple[int, ...]
    rows: tuple[int, ...]

    def valid_nodes(self, frames: int) -> Tensor:
        """(B, frames, U + 1) bool: true at nodes inside an utterance."""
        t = torch.arange(frames, device=self.labels.device)
        u = torch.arange(self.labels.shape[1] + 1, device=self.labels.device)
        return (t < self.lengths.unsqueeze(1)).unsqueeze(2) & (u <= self.label_lengths.unsqueeze(1)).unsqueeze(1)

    def nodes(self, width: int) -> int:
        """Number of nodes inside the utterances, if each frame has at most ``width`` rows, consecutive and among the first
        U_b + 1 ones."""
        return sum(frames * min(rows, width) for frames, rows in zip(self.frames, self.rows))

    def next_labels(self) -> Tensor:
        """(B, U + 1) int64: the next label in each row of the lattice, the blank where there is none."""
        return torch.nn.functional.pad(self.labels, (0, 1), value=self.blank)

    def at_ranges(self, ranges: Tensor) -> Tensor:
        """(B, T, S) int64: the next label at each kept node; ``ranges`` (B, T, S) has the rows of these nodes."""
        return self.next_labels().gather(1, ranges.flatten(1)).view(ranges.shape)


def check_targets(
    labels: Tensor,
    lengths: Tensor,
    label_lengths: Tensor,
    blank: int,
    sizes: tuple[int, int, int],
    device: torch.device,
) -> Targets:
    """Targets for scores of ``sizes`` (B, T, V).

    labels: (B, U) int, with any padding. lengths, label_lengths: (B,) int.
    Raises ValueError on shapes that do not match and on lengths out of range, and UserError on labels that are not in
    the vocabulary or are the blank.
    """
    batch, frames, vocabulary = sizes
    if not 0 <= blank < vocabulary:
        raise ValueError(f"blank {blank} must lie between 0 and V - 1 = {vocabulary - 1}")
    if labels.dim() != 2 or labels.shape[0] != batch or labels.is_floating_point():
        raise ValueError(f"labels {tuple(labels.shape)} {labels.dtype} must be whole numbers of shape ({batch}, U)")
    width = labels.shape[1]
    all_frames = _check_lengths("lengths", lengths, batch, (1, frames), "T")
    all_labels = _check_lengths("label_lengths", label_lengths, batch, (0, width), "U")
    lengths, label_lengths = (x.to(device=device, dtype=torch.int64) for x in (lengths, label_lengths))
    labels = labels.to(device=device, dtype=torch.int64)
    valid = torch.arange(width, device=device) < label_lengths.unsqueeze(1)
    wrong = _wrong_labels(copy_on_host(labels), copy_on_host(label_lengths), blank, vocabulary)
    if len(wrong):
        allowed = f"0 to {vocabulary - 1}, without the blank {blank}"
        raise UserError(f"transducer labels: {int(wrong[0])} is not allowed; the vocabulary's labels are {allowed}")
    labels = labels.masked_fill(~valid, blank)
    return Targets(labels, lengths, label_lengths, blank, all_frames, tuple(count + 1 for count in all_labels))


def check_ranges(ranges: Tensor, targets: Targets) -> Tensor:
    """The rows (B, T, S) that a pruned lattice keeps, on the device of the scores.

    Raises ValueError unless the rows of each frame are consecutive and within 0 to U, the first frame of an utterance
    begins with row 0, and its last frame contains row U_b. Utterances with fewer rows than the window use the first
    rows of it.
    """
    ranges = ranges.to(device=targets.labels.device, dtype=torch.int64)
    # Passes of a step share their ranges: these are checked once.
    if not fact(ranges, (targets.frames, targets.rows), lambda: _are_windows(ranges, targets)):
        raise ValueError(
            f"ranges {tuple(ranges.shape)} must be windows of consecutive rows of the lattice, from row 0 in the first "
            f"frame to the row of the last label in the last, as prune_ranges makes them for these lengths"
        )
    return ranges


def _wrong_labels(labels: Tensor, label_lengths: Tensor, blank: int, vocabulary: int) -> Tensor:
    """The labels (n,) among those of utterances that are not allowed: labels (B, U), label_lengths (B,)."""
    valid = torch.arange(labels.shape[1]) < label_lengths.unsqueeze(1)
    return labels[valid & ((labels < 0) | (labels >= vocabulary) | (labels == blank))]


def _are_windows(ranges: Tensor, targets: Targets) -> bool:
    """Whether ranges (B, T, S) are as :func:`check_ranges` says. Waits once for the device."""
    width, rows = ranges.shape[2], targets.labels.shape[1] + 1
    if not 1 <= width <= rows:
        return False
    ends = ranges.gather(1, (targets.lengths - 1).view(-1, 1, 1).expand(-1, 1, width))[:, 0, -1]
    most = (targets.label_lengths.unsqueeze(1) + 1 - width).clamp(min=0)
    inside = (ranges[:, :, 0] >= 0) & (ranges[:, :, 0] <= most)
    starts_and_ends = (ranges[:, 0, 0] == 0) & (ends >= targets.label_lengths)
    return bool((ranges.diff(dim=2) == 1).all() & inside.all() & starts_and_ends.all())


def _check_lengths(
    name: str, lengths: Tensor, batch: int, limits: tuple[int, int], largest_name: str
) -> tuple[int, ...]:
    """The lengths as Python numbers, all within ``limits``."""
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(f"{name} {tuple(lengths.shape)} {lengths.dtype} must be whole numbers of shape ({batch},)")
    numbers, (least, most) = tuple(values(lengths)), limits
    if not all(least <= number <= most for number in numbers):
        raise ValueError(f"{name} {list(numbers)} must lie between {least} and {largest_name} = {most}")
    return numbers
