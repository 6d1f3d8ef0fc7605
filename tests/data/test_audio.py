"""What is measured on an utterance, and how decoders' errors are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording

from espnet_todm.data.audio import Measure, in_words, libsndfile, read
from tests.tiny_corpus import RATE, noise, truncate


def measure(path: Path) -> tuple[Measure, np.ndarray | None]:
    with libsndfile():
        return read(Recording.from_file(path).to_cut())


def test_a_good_file(tmp_path: Path) -> None:
    samples = noise(1.0, seed=3)
    soundfile.write(tmp_path / "x.wav", samples, RATE, subtype="FLOAT")
    found, read_back = measure(tmp_path / "x.wav")
    np.testing.assert_array_equal(read_back, samples[None])
    assert (found.utterance, found.seconds, found.sampling_rate, found.channels) == ("x", 1.0, RATE, 1)
    assert found.peak == pytest.approx(np.abs(samples).max())
    assert found.clipped == 0.0 and found.error is None


def test_clipping_is_a_share_of_the_samples(tmp_path: Path) -> None:
    samples = noise(1.0)
    samples[:800] = 1.0
    samples[800:1600] = -1.0
    soundfile.write(tmp_path / "x.flac", samples, RATE)
    assert measure(tmp_path / "x.flac")[0].clipped == pytest.approx(1600 / RATE)


def test_a_truncated_flac_is_unreadable_though_its_header_is_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", noise(2.0), RATE)
    truncate(tmp_path / "x.flac")
    found, samples = measure(tmp_path / "x.flac")
    assert samples is None
    assert found.seconds == 2.0
    assert found.error == "Error : flac decoder lost sync."


def test_samples_that_are_no_numbers_are_unreadable(tmp_path: Path) -> None:
    samples = noise(1.0)
    samples[5] = np.nan
    soundfile.write(tmp_path / "x.wav", samples, RATE, subtype="FLOAT")
    found, read_back = measure(tmp_path / "x.wav")
    assert read_back is None and "finite" in (found.error or "")


def test_the_backend_is_given_back_after_an_error() -> None:
    from lhotse.audio.backend import get_current_audio_backend

    before = get_current_audio_backend()
    with pytest.raises(RuntimeError), libsndfile():
        raise RuntimeError
    assert get_current_audio_backend() is before


def test_errors_that_cannot_be_printed_are_named() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise TypeError

    assert in_words(Silent()) == "Silent"
    assert in_words(ValueError("two\nlines")) == "two lines"
