"""When text is there: speech comes in real time, and a chunk waits for its last sample and for the chunk before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.bench.models.chunks import Chunks, read_chunks, text_times


def test_a_fast_model_waits_for_speech_and_a_slow_one_for_itself() -> None:
    assert text_times(np.array([0.1, 0.2, 0.1]), 0.5, 0.6) == pytest.approx([0.7, 1.3, 1.7])
    assert text_times(np.array([0.1, 0.9, 0.1]), 0.5, 0.6) == pytest.approx([0.7, 2.0, 2.1])
    assert text_times(np.array([]), 0.5, 0.6).shape == (0,)


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_no_text_is_there_before_its_speech_or_its_computation(compute: list[float], chunk: float) -> None:
    times = text_times(np.array(compute), chunk, 0.69)
    speech = 0.69 + chunk * np.arange(len(compute))
    assert (times >= speech + compute - 1e-9).all() and (np.diff(times) >= np.array(compute)[1:] - 1e-9).all()
    assert times[-1] <= speech[-1] + sum(compute) + 1e-9


def test_delays_are_of_each_utterance() -> None:
    """Two utterances of 1.2 s and 0.4 s; nothing is heard in the second one."""
    elapsed = np.array([[0.01, 0.02, 0.03, 0.05]] * 3)
    figures = Chunks(elapsed, [3, 1], [1, -1], 0.5, 0.6).figures([1.2, 0.4])
    assert figures["first_word_p50_ms"] == figures["first_word_p95_ms"] == pytest.approx(1120.0)
    assert figures["end_p50_ms"] == pytest.approx((430.0 + 250.0) / 2)
    assert figures["chunk_p50_ms"] == pytest.approx(25.0) and figures["chunk_seconds"] == 0.5


def test_where_nothing_was_heard_there_is_no_first_word() -> None:
    figures = Chunks(np.full((2, 1), 0.01), [1], [-1], 0.5, 0.6).figures([0.4])
    assert "first_word_p50_ms" not in figures and figures["end_p50_ms"] == pytest.approx(210.0)


def test_answers_of_a_worker_are_read() -> None:
    answers = [{"chunks": [[0.1, 0.2], [0.3]], "first": [1, -1]}, {"chunks": [[0.2, 0.3], [0.4]], "first": [1, -1]}]
    chunks = read_chunks({"chunk_seconds": 0.64, "tail_seconds": 0.69}, answers)
    np.testing.assert_array_equal(chunks.elapsed, [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]])
    assert (chunks.counts, chunks.first, chunks.speech_seconds) == ([2, 1], [1, -1], pytest.approx(1.92))
