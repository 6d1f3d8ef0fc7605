from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import mini_speech as speech
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE

NEEDS_ESPEAK = "espeakng-loader is not installed: pip install espnet_todm[mini]"


def power(samples: np.ndarray) -> float:
    return float(np.mean(samples**2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    snr=st.floats(-10, 40),
    level=st.floats(-40, 0),
    lead=st.integers(0, 2000),
    kind=st.sampled_from([kind for kind in speech.NOISES if kind != "babble"]),
)
def test_a_mixture_has_the_ratio_and_the_level_asked_for_and_never_clips(seed, snr, level, lead, kind):
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal(4000) * np.sin(np.arange(4000) / 300)
    noise = speech.coloured_noise(kind, 7000, rng)
    mixed = speech.mix(clean, noise, snr, level, lead)
    # The mixture is linear in the speech: turning it over and averaging leaves the noise alone.
    turned = speech.mix(-clean, noise, snr, level, lead)
    rest = np.concatenate([mixed[:lead], mixed[lead + 4000 :]])
    gain = np.sqrt(power(rest) / power(np.delete(noise, np.s_[lead : lead + 4000]))) * 10 ** (snr / 20)
    speech_only = mixed[lead : lead + 4000] - gain * 10 ** (-snr / 20) * noise[lead : lead + 4000]
    assert 10 * np.log10(power(speech_only) / (gain**2 * 10 ** (-snr / 10))) == pytest.approx(snr, abs=0.01)
    assert np.corrcoef(speech_only, clean)[0, 1] > 0.999
    assert np.abs(mixed).max() <= speech.PEAK + 1e-9
    assert np.abs(turned).max() <= speech.PEAK + 1e-9
    reached = 10 * np.log10(power(speech_only))
    assert reached <= level + 0.01
    if np.abs(mixed).max() < speech.PEAK - 1e-6:
        assert reached == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -3.0), ("brown", -6.0)])
def test_coloured_noise_falls_by_so_many_decibels_per_octave(kind, slope):
    noise = speech.coloured_noise(kind, 2**18, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / SAMPLING_RATE)
    density = [10 * np.log10(spectrum[(hertz >= low) & (hertz < 2 * low)].mean()) for low in (250, 500, 1000, 2000)]
    assert np.diff(density) == pytest.approx([slope] * 3, abs=0.5)
    assert power(noise) == pytest.approx(1.0)


def test_babble_is_as_long_as_asked_and_of_unit_power():
    rng = np.random.default_rng(0)
    voices = [rng.standard_normal(length) for length in (500, 1700)]
    assert speech.babble(voices, 3000, rng).shape == (3000,)
    assert power(speech.babble(voices, 3000, rng)) == pytest.approx(1.0)


@pytest.mark.parametrize("speed", [397 / 441, 1.0, 485 / 441])
def test_resampling_keeps_the_amplitude_and_scales_the_frequency(speed):
    time = np.arange(22050) / 22050
    tone = speech.resample(np.sin(2 * np.pi * 1000 * time), speed)
    assert len(tone) == math.ceil(16000 / speed)
    peak = np.argmax(np.abs(np.fft.rfft(tone))) * SAMPLING_RATE / len(tone)
    assert peak == pytest.approx(1000 * speed, abs=2)
    assert np.abs(tone[1000:-1000]).max() == pytest.approx(1.0, abs=0.01)


def test_trimming_removes_only_the_silence():
    samples = np.concatenate([np.zeros(100), [0.5, 0.0, -0.5], np.full(50, 0.001)])
    assert speech.trim(samples).tolist() == [0.5, 0.0, -0.5]
    assert len(speech.trim(np.zeros(10))) == 0


def test_no_variant_stands_in_two_splits():
    variants = [name for split in speech.VARIANTS.values() for name, _ in split]
    assert len(variants) == len(set(variants))
    assert all({sex for _, sex in split} == {"M", "F"} for split in speech.VARIANTS.values())


def test_no_variant_has_the_breath_that_espeak_makes_from_unwritten_memory():
    loader = pytest.importorskip("espeakng_loader", reason=NEEDS_ESPEAK)
    for variant in (name for split in speech.VARIANTS.values() for name, _ in split):
        settings_of = (Path(loader.get_data_path()) / "voices" / "!v" / variant).read_text(encoding="utf-8")
        assert not re.search(r"^\s*breathw?\s", settings_of, re.MULTILINE), variant


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install espnet_todm\[mini\]"):
        speech.import_espeak()


@pytest.fixture
def synthesizer():
    pytest.importorskip("espeakng_loader", reason=NEEDS_ESPEAK)
    with speech.Synthesizer(seed=1) as synthesizer:
        yield synthesizer


@pytest.mark.parametrize("split", list(speech.VARIANTS))
def test_every_voice_speaks_without_clipping(synthesizer, split):
    loud = {}
    for accent in speech.ACCENTS:
        for variant, sex in speech.VARIANTS[split]:
            voice = speech.Voice(accent, variant, sex)
            samples = synthesizer.speak("what is the weather in boston", voice, 165, 50, 50)
            assert 0.8 < len(samples) / 22050 < 3, voice.name
            loud[voice.name] = np.abs(samples).max()
    assert all(0.02 < peak < 0.99 for peak in loud.values()), loud


def test_rate_and_pitch_do_what_they_say(synthesizer):
    voice = speech.Voice("en-us", "m1", "M")
    slow, fast = (synthesizer.speak("turn on the kitchen lights", voice, rate, 50, 50) for rate in (130, 220))
    assert len(slow) > 1.3 * len(fast)
    low, high = (synthesizer.speak("mama", voice, 165, pitch, 0) for pitch in (10, 90))

    def period(samples: np.ndarray) -> int:
        middle = samples[len(samples) // 2 :][:2000]
        echo = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        return 60 + int(np.argmax(echo[60:500]))

    assert period(low) > 1.2 * period(high)


def test_an_unknown_voice_is_refused(synthesizer):
    with pytest.raises(UserError, match="nowhere"):
        synthesizer.speak("hello", speech.Voice("nowhere", "m1", "M"), 165, 50, 50)


def test_a_data_folder_deep_in_the_file_system_works(tmp_path):
    loader = pytest.importorskip("espeakng_loader", reason=NEEDS_ESPEAK)
    deep = tmp_path.joinpath(*["a" * 60] * 4)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(loader.get_data_path())
    with speech.Synthesizer(seed=1, data_path=str(deep / "espeak-ng-data")) as synthesizer:
        assert len(synthesizer.speak("hello", speech.Voice("en-us", "m1", "M"), 165, 50, 50)) > 2000
