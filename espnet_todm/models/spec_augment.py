"""``specaug: todm_specaug``: SpecAugment whose number of time masks grows with the utterance, as in OrthoSoftmax.

Source: the reference code of arXiv 2501.18895 (SpecAugment by length). It derives the number of time masks from the length
of the batch, and masks may fall into padding. This module uses the length of each utterance.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from torch import Tensor

from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.host import on_both, values

REPLACEMENTS = ("mean", "zero")


class SpecAugmentByLength(AbsSpecAug):
    """Masks in time and frequency. Numbers and widths are uniform, drawn for each utterance, with inclusive bounds.

    The random numbers are torch's on the features' device. Padding is not masked.

    Args:
        freq_masks: maximum number of frequency masks of an utterance. The minimum is min(2, freq_masks).
        freq_width: maximum width of a frequency mask in bands. The minimum is 1.
        min_time_masks: minimum number of time masks of an utterance.
        frames_per_time_mask: an utterance of T frames has at most max(T // frames_per_time_mask, min_time_masks) masks.
        time_width: maximum width of a time mask in frames. The minimum is 1.
        replace_with: "mean" of the utterance's band, or "zero". ESPnet normalises after SpecAugment, so the mean becomes
            about 0.

    Raises:
        UserError: an option outside its range.
    """

    def __init__(
        self,
        freq_masks: int = 5,
        freq_width: int = 8,
        min_time_masks: int = 2,
        frames_per_time_mask: int = 25,
        time_width: int = 20,
        replace_with: str = "mean",
    ) -> None:
        super().__init__()
        counts = {"freq_masks": freq_masks, "min_time_masks": min_time_masks}
        sizes = {"freq_width": freq_width, "frames_per_time_mask": frames_per_time_mask, "time_width": time_width}
        for key, value in {**counts, **sizes}.items():
            check_number(f"todm_specaug: {key}", value, at_least=0 if key in counts else 1, whole=True)
        check_choice("todm_specaug: replace_with", replace_with, REPLACEMENTS)
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.min_time_masks, self.frames_per_time_mask, self.time_width = (
            min_time_masks,
            frames_per_time_mask,
            time_width,
        )
        self.replace_with = replace_with

    def forward(self, x: Tensor, x_lengths: Optional[Tensor] = None) -> tuple[Tensor, Optional[Tensor]]:
        """Features x (B, T, F), lengths (B,) or None if all are T -> masked features (B, T, F), the given lengths."""
        batch, frames, bands = x.shape
        lengths = x.new_full((batch,), frames, dtype=torch.long) if x_lengths is None else x_lengths.to(x.device)
        most = on_both(lambda x: (x // self.frames_per_time_mask).clamp_min(self.min_time_masks), lengths)
        slots = max(values(most), default=0)
        time = draw_masks(most.new_full((batch,), self.min_time_masks), most, slots, self.time_width, lengths, frames)
        most, ends = lengths.new_full((batch,), self.freq_masks), lengths.new_full((batch,), bands)
        freq = draw_masks(most.clamp_max(2), most, self.freq_masks, self.freq_width, ends, bands)
        valid = torch.arange(frames, device=x.device) < lengths[:, None]  # (B, T)
        masked = (time[:, :, None] | freq[:, None, :]) & valid[:, :, None]  # (B, T, F)
        return torch.where(masked, self._replacement(x, valid), x), x_lengths

    def _replacement(self, x: Tensor, valid: Tensor) -> Any:
        """Values for masked places: (B, 1, F), or a scalar zero."""
        if self.replace_with == "zero":
            return x.new_zeros(())
        total = (x * valid[:, :, None]).sum(1, keepdim=True)
        return total / valid.sum(1)[:, None, None].clamp_min(1)


def draw_masks(fewest: Tensor, most: Tensor, slots: int, width: int, lengths: Tensor, size: int) -> Tensor:
    """Draw masks. Returns (B, size) bool, true where a place is masked. ``slots``: the largest number in ``most``.

    Utterance b gets fewest[b] to most[b] masks of 1 to ``width`` places. Each begins before lengths[b] and is cut off there.
    """
    device = lengths.device
    if slots == 0:
        return torch.zeros(lengths.numel(), size, dtype=torch.bool, device=device)
    count = fewest + (torch.rand(fewest.shape, device=device) * (most - fewest + 1)).long()
    begin = (torch.rand(lengths.numel(), slots, device=device) * lengths[:, None]).long()
    end = torch.minimum(begin + torch.randint(1, width + 1, begin.shape, device=device), lengths[:, None])
    drawn = torch.arange(slots, device=device) < count[:, None]  # (B, slots)
    place = torch.arange(size, device=device)
    inside = (place >= begin[:, :, None]) & (place < end[:, :, None])  # (B, slots, size)
    return (inside & drawn[:, :, None]).any(1)
