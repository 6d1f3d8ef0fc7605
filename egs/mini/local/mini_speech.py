"""Speech of the mini corpus: espeak-ng through ctypes, many voices, noise at a chosen signal-to-noise ratio.

espeak-ng keeps its state (flutter, noise, echo) in globals from one utterance to the next, so a speaker's bytes are
only reproducible in a process of their own; ``mini_corpus`` starts one per speaker.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE

PEAK = 0.95
# Names of espeak-ng's voice files of English; "en" is its British voice.
ACCENTS = ("en-us", "en")
_VARIANTS = {
    "train": {
        "M": "m1 m2 m5 m7 m8 max Andy Michael boris zac ian john quincy robert klatt klatt2 klatt6 adam edward2",
        "F": "f1 Annie Andrea anika steph grandma shelby",
    },
    "dev": {"M": "m4 Mike", "F": "aunty"},
    "test": {"M": "m3 m6 klatt3", "F": "f4 linda belinda"},
}
# Voice variants of each split as (name, sex). None is a near copy of one in train. Variants with breath (f2, f3, f5, ...)
# are left out: espeak-ng makes it from memory that it never wrote, so that no two runs give the same samples.
VARIANTS = {
    split: tuple((name, sex) for sex, names in sexes.items() for name in names.split())
    for split, sexes in _VARIANTS.items()
}
NOISES = ("white", "pink", "brown", "band", "babble")

_RETRIEVE_SYNCHRONOUSLY = 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIBRARY_RATE = 22050
# 22050 Hz to 16 kHz is 441 samples to 320, so that playing n times faster is a ratio of small whole numbers for n in 1/441.
SPEED_STEPS = 441


@dataclass(frozen=True)
class Voice:
    """A speaker: an accent with a variant, and the manner around which each utterance varies."""

    accent: str
    variant: str
    sex: str
    words_per_minute: int = 165
    pitch: int = 50

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}"


def draw_voices(split: str, count: int, rng: np.random.Generator) -> list[Voice]:
    """``count`` voices, as many women's as men's, every pair of accent and variant before one comes again."""
    orders = []
    for wanted in ("F", "M"):
        pairs = [(accent, name, sex) for accent in ACCENTS for name, sex in VARIANTS[split] if sex == wanted]
        rounds = -(-count // len(pairs))
        orders.append([pairs[place] for _ in range(rounds) for place in rng.permutation(len(pairs))])
    order = [voice for both in zip(*orders) for voice in both][:count]
    return [
        Voice(accent, variant, sex, words_per_minute=int(rng.integers(118, 154)), pitch=int(rng.integers(38, 63)))
        for accent, variant, sex in order
    ]


class Synthesizer:
    """espeak-ng in this process. Raises UserError when the package espeakng-loader is missing or does not work.

    Args:
        seed: of the C library's random numbers, which make espeak-ng's noise.
        data_path: folder ``espeak-ng-data``; the package's own by default.
    """

    def __init__(self, seed: int, data_path: Optional[str] = None) -> None:
        loader = import_espeak()
        data_path = data_path or loader.get_data_path()
        self._folder = tempfile.mkdtemp(prefix="espeak")
        self._library = ctypes.CDLL(loader.get_library_path())
        self._chunks: list[bytes] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._receive)  # must live as long as the library may call it
        # espeak-ng copies the path to its data into a small buffer, so it gets a short one.
        link = Path(self._folder) / "espeak-ng-data"
        link.symlink_to(Path(data_path).resolve())
        with _quiet_stderr():
            rate = self._library.espeak_Initialize(_RETRIEVE_SYNCHRONOUSLY, 0, os.fsencode(link), _DO_NOT_EXIT)
            works = rate == _LIBRARY_RATE and self._library.espeak_SetVoiceByName(ACCENTS[0].encode()) == 0
        if not works:
            self.close()
            raise UserError(f"espeak-ng does not start with its data in {data_path}")
        self._library.espeak_SetSynthCallback(self._callback)
        ctypes.CDLL(None).srand(seed)

    def close(self) -> None:
        """Remove the temporary files. The library itself stays loaded."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Synthesizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, samples: int | None, count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, voice: Voice, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speech (T,) float64 in [-1, 1) at 22050 Hz, without the silence around it.

        Args:
            text: words in lower case.
            rate: words per minute (80 to 450).
            pitch, pitch_range: 0 to 100, 50 being the voice's own.
        """
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"voice {voice.name!r}: espeak-ng has none of that name")
        # At a volume of 50 (of 100) no voice clips inside the library.
        for parameter, value in ((_RATE, rate), (_VOLUME, 50), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode("utf-8") + b"\0"
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return trim(np.frombuffer(b"".join(self._chunks), dtype=np.int16) / 32768.0)


def import_espeak() -> Any:
    """The module ``espeakng_loader``. Raises UserError when it is not installed."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "espeakng-loader is missing, which speaks the mini corpus: pip install espnet_todm[mini]"
        ) from None
    return espeakng_loader


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what C code writes to stderr to nowhere."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def trim(samples: np.ndarray, threshold: float = 0.002) -> np.ndarray:
    """Cut the silence (below ``threshold`` of full scale) before and after the speech (T,)."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def resample(samples: np.ndarray, speed: float) -> np.ndarray:
    """From 22050 Hz to 16 kHz, played ``speed`` times as fast (pitch changes too; in steps of 1/SPEED_STEPS)."""
    return resample_poly(samples, SPEED_STEPS * SAMPLING_RATE // _LIBRARY_RATE, round(SPEED_STEPS * speed))


def coloured_noise(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (length,) float64 of unit power: white, pink (1/f), brown (1/f^2) or band (one to three octaves)."""
    longer = next_fast_len(length, real=True)
    spectrum = np.fft.rfft(rng.standard_normal(longer))
    hertz = np.fft.rfftfreq(longer, 1 / SAMPLING_RATE)
    if kind == "band":
        low = np.exp(rng.uniform(np.log(100), np.log(2000)))
        outside = (hertz < low) | (hertz > low * 2 ** rng.uniform(1, 3))
        spectrum[outside] *= 0.03  # never digital silence, which no microphone gives
    else:
        slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
        spectrum *= np.maximum(hertz, 50.0) ** -slope
    return _unit_power(np.fft.irfft(spectrum, longer)[:length])


def babble(voices: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Several people at once (length,) of unit power: each voice at 16 kHz repeated from a random point."""
    total = np.zeros(length)
    for samples in voices:
        repeated = np.resize(np.roll(samples, rng.integers(len(samples))), length)
        total += _unit_power(repeated) * rng.uniform(0.5, 1.0)
    return _unit_power(total)


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, level: float, lead: int) -> np.ndarray:
    """Speech (T,) that starts ``lead`` samples into noise (N,), N >= lead + T; float64 (N,) within +-``PEAK``.

    Args:
        snr: dB, power of the speech (from its first to its last sound) over the power of the whole noise.
        level: dBFS, root mean square of the speech; lowered where the peak would pass ``PEAK``.
    """
    signal = _unit_power(noise) * 10 ** (-snr / 20)
    signal[lead : lead + len(speech)] += _unit_power(speech)
    gain = min(10 ** (level / 20), PEAK / np.abs(signal).max())
    return signal * gain


def _unit_power(samples: np.ndarray) -> np.ndarray:
    return samples / np.sqrt(np.mean(samples**2) + 1e-20)
