"""Sounds without speech: silence, noise, hum, music-like tones and knocks, made from a generator of random numbers.

A model that never heard such sounds writes words for them. They are for training with empty transcripts, and to count the
words that a model writes for them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from espnet_todm.util.acoustics import SAMPLING_RATE

Sound = Callable[[int, np.random.Generator], np.ndarray]
LEVELS = (-70.0, -15.0)  # of what is not silent: root mean square in dB below full scale


def silence(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Digital silence, or in two of three cases the faint noise of a converter."""
    return rng.normal(scale=1e-4 * rng.integers(3), size=samples)


def noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """White to brown noise, whose level moves slowly."""
    spectrum = np.fft.rfft(rng.normal(size=samples))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE).clip(20.0)
    coloured = np.fft.irfft(spectrum * frequencies ** -rng.uniform(0, 1), samples)
    return coloured * _slow(samples, rng, rng.uniform(0, 12))


def hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """The mains' hum with harmonics, and a little noise."""
    base = rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
    time = np.arange(samples) / SAMPLING_RATE
    waves = [np.sin(2 * np.pi * base * n * time + rng.uniform(0, 6)) * rng.uniform(0, 1) / n for n in range(1, 12)]
    return np.sum(waves, axis=0) + 0.1 * rng.normal(size=samples)


def tones(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Notes of a scale, one or more at a time, each with harmonics and a decay."""
    sound, begin = np.zeros(samples), 0
    while begin < samples:
        length = int(SAMPLING_RATE * rng.uniform(0.1, 0.8))
        for _ in range(rng.integers(1, 4)):
            pitch = 110 * 2 ** (rng.integers(0, 37) / 12)
            time = np.arange(min(3 * length, samples - begin)) / SAMPLING_RATE
            harmonics = [np.sin(2 * np.pi * pitch * n * time) * rng.uniform(0, 1) / n for n in range(1, 6)]
            attack = np.minimum(1, time / rng.uniform(0.005, 0.05))
            sound[begin : begin + len(time)] += np.sum(harmonics, axis=0) * attack * np.exp(-rng.uniform(1, 8) * time)
        begin += length
    return sound


def knocks(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Short bursts of noise, some of them ringing, in faint noise."""
    sound = 0.003 * rng.normal(size=samples)
    for _ in range(1 + samples // SAMPLING_RATE):
        begin, length = int(rng.integers(samples)), int(SAMPLING_RATE * rng.uniform(0.01, 0.2))
        time = np.arange(min(length, samples - begin)) / SAMPLING_RATE
        ringing = np.sin(2 * np.pi * rng.uniform(100, 3000) * time) * rng.integers(2)
        burst = (rng.normal(size=len(time)) * rng.uniform(0.1, 1) + ringing) * np.exp(-rng.uniform(15, 60) * time)
        sound[begin : begin + len(time)] += burst
    return sound


KINDS: dict[str, Sound] = {"silence": silence, "noise": noise, "hum": hum, "tones": tones, "knocks": knocks}


def sound_of(kind: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A sound of KINDS at a random level, (samples,) float32 in [-1, 1] at 16 kHz. The same generator, the same sound."""
    sound = KINDS[kind](samples, rng) if samples else np.zeros(0)
    if kind != "silence" and samples:
        level = 10 ** (rng.uniform(*LEVELS) / 20)
        sound = sound * (level / max(float(np.sqrt(np.mean(sound**2))), 1e-9))
    return sound.clip(-1, 1).astype(np.float32)


def _slow(samples: int, rng: np.random.Generator, decibels: float) -> np.ndarray:
    """A factor that moves by so many dB, with a new value about every second."""
    points = np.linspace(0, samples, max(2, samples // SAMPLING_RATE))
    return 10 ** (np.interp(np.arange(samples), points, rng.uniform(-decibels, 0, len(points))) / 20)
