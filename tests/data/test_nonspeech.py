"""Made sounds without speech."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.data.nonspeech import KINDS, LEVELS, sound_of


@given(kind=st.sampled_from(sorted(KINDS)), samples=st.integers(0, 40000), seed=st.integers(0, 99))
def test_a_sound_has_its_length_and_is_in_range(kind: str, samples: int, seed: int) -> None:
    sound = sound_of(kind, samples, np.random.default_rng(seed))
    assert sound.shape == (samples,) and sound.dtype == np.float32
    assert np.isfinite(sound).all() and np.abs(sound).max(initial=0) <= 1
    np.testing.assert_array_equal(sound, sound_of(kind, samples, np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "silence"])
def test_levels_are_those_that_are_named(kind: str) -> None:
    rng = np.random.default_rng(0)
    levels = [20 * np.log10(np.sqrt(np.mean(sound_of(kind, 32000, rng).astype(float) ** 2))) for _ in range(40)]
    assert LEVELS[0] - 0.5 <= min(levels) < -55 and -30 < max(levels) <= LEVELS[1] + 0.5


def test_silence_is_silent_in_a_third_and_faint_else() -> None:
    rng = np.random.default_rng(0)
    sounds = [sound_of("silence", 1600, rng) for _ in range(60)]
    assert 10 <= sum(not sound.any() for sound in sounds) <= 30
    assert max(np.abs(sound).max() for sound in sounds) < 2e-3
