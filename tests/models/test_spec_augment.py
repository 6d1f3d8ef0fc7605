"""SpecAugment by length: how many masks, how wide, where, what with, and that a seed decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug

from espnet_todm.errors import UserError
from espnet_todm.models.spec_augment import SpecAugmentByLength, draw_masks


def runs(mask: torch.Tensor) -> int:
    """Runs of true in mask (N,): never more than the masks drawn, for they may touch."""
    padded = torch.nn.functional.pad(mask.int(), (1, 1))
    return int((padded.diff() == 1).sum())


def test_time_masks_follow_the_length() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1000, 500, 30]).repeat(200)
    most = (lengths // 25).clamp_min(2)
    masks = draw_masks(
        torch.full_like(most, 2), most, 40, 1, lengths, 1000
    )  # of one frame, so that they can be counted
    counts = masks.sum(1).view(200, 3)
    assert counts.max(0).values.tolist()[2] <= 2 and counts.min() >= 1
    assert 20 < counts[:, 0].max() <= 40 and 10 < counts[:, 1].max() <= 20
    assert not any(masks[row, length:].any() for row, length in enumerate(lengths))


@pytest.mark.parametrize("seed", range(3))
def test_masks_keep_within_their_bounds(seed: int) -> None:
    torch.manual_seed(seed)
    augment = SpecAugmentByLength(freq_masks=3, freq_width=4, time_width=6, replace_with="zero")
    x, lengths = torch.rand(8, 200, 40) + 1, torch.tensor([200, 180, 150, 120, 90, 60, 40, 20])
    masked, same = augment(x.clone(), lengths)
    assert same is lengths
    for row, length in enumerate(lengths):
        hidden = masked[row, :length] == 0
        time, freq = hidden.all(1), hidden.all(0)
        assert torch.equal(hidden, time[:, None] | freq[None, :]) or time.all()
        assert 1 <= runs(freq) <= 3 and freq.sum() <= 12
        assert 1 <= runs(time) <= max(2, length // 25) and time.sum() <= 6 * max(2, int(length) // 25)
        assert torch.equal(masked[row, length:], x[row, length:])


def test_a_seed_decides_and_the_input_is_left_alone() -> None:
    augment, x = SpecAugmentByLength(), torch.rand(2, 100, 80)
    before, results = x.clone(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(x, torch.tensor([100, 70]))[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(x, before)


def test_the_mean_is_that_of_the_utterances_own_band() -> None:
    x = torch.rand(1, 50, 8)
    x[0, 30:] = 1000.0  # padding that must not count
    masked = SpecAugmentByLength(freq_masks=0, min_time_masks=8, time_width=20)(x, torch.tensor([30]))[0]
    changed = (masked != x).any(-1)[0]
    assert changed.any() and not changed[30:].any()
    torch.testing.assert_close(masked[0, changed], x[0, :30].mean(0).expand(int(changed.sum()), -1))


def test_no_masks_and_no_lengths_are_fine() -> None:
    x = torch.rand(2, 10, 8)
    assert torch.equal(SpecAugmentByLength(freq_masks=0, min_time_masks=0)(x, torch.tensor([10, 5]))[0], x)
    masked, lengths = SpecAugmentByLength(freq_masks=2, freq_width=1, replace_with="zero")(x)
    assert lengths is None and (masked == 0).any()


def test_espnet_takes_it() -> None:
    assert issubclass(SpecAugmentByLength, AbsSpecAug)


@pytest.mark.parametrize(
    ("key", "value"), [("freq_masks", -1), ("freq_width", 0), ("time_width", 1.5), ("frames_per_time_mask", 0)]
)
def test_a_bad_option_is_named_with_its_value(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"todm_specaug: {key}: {value!r} is not allowed"):
        SpecAugmentByLength(**{key: value})


def test_an_unknown_replacement_is_named() -> None:
    with pytest.raises(UserError, match="replace_with: 'noise' is unknown; allowed: mean, zero"):
        SpecAugmentByLength(replace_with="noise")
