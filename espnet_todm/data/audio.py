"""Reading an utterance's audio once, and what is measured on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.cut import MonoCut

FULL_SCALE = 0.999  # at or above this a 16-bit sample counts as clipped


@dataclass
class Measure:
    """What stage 3 saw of an utterance, and what stage 4 judges.

    seconds, sampling_rate (Hz) and channels come from the header; peak (largest magnitude, full scale is 1) and
    clipped (the share of samples at full scale) from the samples; error says why they could not be read. ``where`` is
    the feature archive's ``path:offset`` or the audio's path, None when nothing was written; frames is the length of
    what was written (feature frames, or samples of raw audio).
    """

    utterance: str
    seconds: float
    sampling_rate: int
    channels: int
    peak: float = 0.0
    clipped: float = 0.0
    error: Optional[str] = None
    where: Optional[str] = None
    frames: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def libsndfile() -> Iterator[None]:
    """Let lhotse read audio with libsndfile alone: others that it would try after a failure hide the first error."""
    previous = get_current_audio_backend()
    set_current_audio_backend(LibsndfileBackend())
    try:
        yield
    finally:
        set_current_audio_backend(previous)


def read(cut: MonoCut) -> tuple[Measure, Optional[np.ndarray]]:
    """Read a cut's audio, its transforms applied.

    Returns the measure and the samples (1, T) float32 in [-1, 1], or None in their place when they cannot be read
    whole.
    """
    recording = cut.recording
    measure = Measure(cut.id, cut.duration, recording.sampling_rate, recording.num_channels)
    try:
        samples = cut.load_audio()
    except Exception as error:  # whatever the decoder raises, this file cannot be used
        measure.error = in_words(error)
        return measure, None
    if not np.isfinite(samples).all():
        measure.error = "samples that are no finite numbers"
        return measure, None
    magnitude = np.abs(samples)
    measure.peak = float(magnitude.max(initial=0.0))
    measure.clipped = float((magnitude >= FULL_SCALE).mean()) if samples.size else 0.0
    return measure, samples


def in_words(error: BaseException) -> str:
    """The first cause of an error as one line. (lhotse wraps a decoder's errors in ones that cannot always be
    printed.)"""
    while error.__context__ is not None:
        error = error.__context__
    try:
        words = str(error)
    except TypeError:
        words = ""
    return " ".join(words.split()) or type(error).__name__
