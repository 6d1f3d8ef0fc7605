"""``specaug: todm_specaug``: SpecAugment whose number of time masks grows with the utterance, as in OrthoSoftmax.

Source: the reference code of arXiv 2501.18895 (SpecAugment by length), which counts time masks by the batch's length and
lets them fall into padding. Here each utterance's own length counts.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from torch import Tensor

from espnet_todm.util.checks import check_choice, check_number

REPLACEMENTS = ("mean", "zero")


class SpecAugmentByLength(AbsSpecAug):
    """Masks in time and frequency; numbers and widths are drawn for each utterance, uniformly, bounds included.

    Randomness is torch's, on the features' device. Frames behind an utterance's end are left alone.

    Args:
        freq_masks: most frequency masks of an utterance; the fewest are 2, or this if it is less.
        freq_width: widest frequency mask, in bands; the narrowest is 1.
        min_time_masks: fewest time masks of an utterance.
        frames_per_time_mask: an utterance of T frames has at most T // this time masks, but min_time_masks always.
        time_width: widest time mask, in frames; the narrowest is 1.
        replace_with: "mean" of the utterance's band, about 0 once features are normalised (ESPnet normalises after
            SpecAugment), or "zero".

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
        """x (B, T, F), lengths (B,) or None for all of T -> the same, masked."""
        batch, frames, bands = x.shape
        lengths = x.new_full((batch,), frames, dtype=torch.long) if x_lengths is None else x_lengths.to(x.device)
        most = (lengths // self.frames_per_time_mask).clamp_min(self.min_time_masks)
        time = draw_masks(most.new_full((batch,), self.min_time_masks), most, self.time_width, lengths, frames)
        most = lengths.new_full((batch,), self.freq_masks)
        freq = draw_masks(most.clamp_max(2), most, self.freq_width, lengths.new_full((batch,), bands), bands)
        valid = torch.arange(frames, device=x.device) < lengths[:, None]  # (B, T)
        masked = (time[:, :, None] | freq[:, None, :]) & valid[:, :, None]  # (B, T, F)
        return torch.where(masked, self._replacement(x, valid), x), x_lengths

    def _replacement(self, x: Tensor, valid: Tensor) -> Any:
        """What stands in masked places, (B, 1, F)."""
        if self.replace_with == "zero":
            return x.new_zeros(())
        total = (x * valid[:, :, None]).sum(1, keepdim=True)
        return total / valid.sum(1)[:, None, None].clamp_min(1)


def draw_masks(fewest: Tensor, most: Tensor, width: int, lengths: Tensor, size: int) -> Tensor:
    """Which of ``size`` places are masked: (B, size) bool.

    Utterance b gets fewest[b] to most[b] masks of 1 to ``width`` places. Each begins anywhere before lengths[b]; what would
    reach beyond is cut off.
    """
    device = lengths.device
    slots = int(most.max()) if most.numel() else 0
    if slots == 0:
        return torch.zeros(lengths.numel(), size, dtype=torch.bool, device=device)
    count = fewest + (torch.rand(fewest.shape, device=device) * (most - fewest + 1)).long()
    begin = (torch.rand(lengths.numel(), slots, device=device) * lengths[:, None]).long()
    end = torch.minimum(begin + torch.randint(1, width + 1, begin.shape, device=device), lengths[:, None])
    drawn = torch.arange(slots, device=device) < count[:, None]  # (B, slots)
    place = torch.arange(size, device=device)
    inside = (place >= begin[:, :, None]) & (place < end[:, :, None])  # (B, slots, size)
    return (inside & drawn[:, :, None]).any(1)
