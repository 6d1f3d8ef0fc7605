"""Views: masks of their own, one time warp for all, each a function of its seed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from espnet2.asr.specaug.specaug import SpecAug

from espnet_todm.models.spec_augment import SpecAugmentByLength
from espnet_todm.models.views import augmented, masked_frames, seeded, warp_and_masks, warped
from tests.tiny_model import batch, tiny_model

WARPED = {"time_warp_window": 5, "freq_mask_width_range": (0, 8), "time_mask_width_range": (0, 12)}


def test_a_seed_decides_and_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    drawn = []
    for seed in ("a", "a", "b"):
        with seeded(seed, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("specaug", [SpecAug(**WARPED), SpecAugmentByLength(frames_per_time_mask=10, time_width=5)])
def test_views_share_the_warp_and_differ_in_their_masks(specaug: Any) -> None:
    model, of = tiny_model(model={"specaug": specaug}).train(), batch()
    before = of.speech.clone()
    warp, masks = warp_and_masks(model.specaug)
    features = warped(model.run_features(of), warp, "warp 0")
    assert (warp is not None) == isinstance(specaug, SpecAug)
    assert torch.equal(features.hidden, warped(model.run_features(of), warp, "warp 0").hidden)
    views = [augmented(masks, name, features.hidden, features.lengths)[0] for name in ("max", "min", "max")]
    assert torch.equal(views[0], views[2]) and not torch.equal(views[0], views[1])
    assert torch.equal(of.speech, before)
    unmasked = (views[0] == features.hidden) & (views[1] == features.hidden)
    assert bool(unmasked.any()) and not bool(unmasked.all())


def test_a_view_is_what_the_configured_specaugment_makes() -> None:
    model, of = tiny_model(model={"specaug": SpecAug(**{**WARPED, "apply_time_warp": False})}).train(), batch()
    features = model.run_features(of)
    _, masks = warp_and_masks(model.specaug)
    view = augmented(masks, "seed", features.hidden, features.lengths)[0]
    with seeded("seed", torch.device("cpu")):
        assert torch.equal(view, model.specaug(features.hidden.clone(), features.lengths)[0])


def test_masks_that_are_off_leave_nothing_to_differ_in() -> None:
    assert warp_and_masks(None) == (None, None)
    only_warp = SpecAug(apply_freq_mask=False, apply_time_mask=False)
    assert warp_and_masks(only_warp)[0] is not None and warp_and_masks(only_warp)[1] is None


def test_subsampled_frames_are_masked_within_their_utterance() -> None:
    model, of = tiny_model().train(), batch(frames=200)
    subsampled = model.run_subsampling(of)
    view = partial(masked_frames, subsampled, frames_per_mask=10, width=3)
    hidden = view("a").hidden
    assert torch.equal(hidden, view("a").hidden) and not torch.equal(hidden, view("b").hidden)
    gone = (hidden == 0).all(-1)
    for row, length in enumerate(subsampled.lengths.tolist()):
        assert 0 < int(gone[row].sum()) <= 3 * (length // 10) and not bool(gone[row, length:].any())
    assert torch.equal(hidden[~gone], subsampled.hidden[~gone])
