"""What a streaming model takes for each chunk, and after how much time its text is there when somebody speaks to a device.

Speech is recorded in real time: a chunk can be computed when its last sample is there and the chunk before it is computed.
After an utterance the device goes on to record, and hears silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chunks:
    """Measurements of a streaming model.

    Args:
        elapsed: wall-clock seconds (rounds, chunks), the chunks of all utterances one after another.
        counts: number of chunks of each utterance.
        first: number of the chunk of each utterance in which the first text was found; -1: there was none.
        chunk_seconds, tail_seconds: see :class:`~espnet_todm.deploy.runtime.base.Timed`.
    """

    elapsed: np.ndarray
    counts: Sequence[int]
    first: Sequence[int]
    chunk_seconds: float
    tail_seconds: float

    @property
    def speech_seconds(self) -> float:
        """Seconds of speech in all chunks."""
        return self.elapsed.shape[1] * self.chunk_seconds

    def figures(self, seconds: Sequence[float]) -> dict[str, float]:
        """Percentiles over chunks and over utterances, in ms, of the medians over rounds.

        ``chunk_p50_ms``, ``chunk_p95_ms``: computation of a chunk. ``first_word_...``: from the first sample of an
        utterance to its first text, so silence before the first word counts. ``end_...``: from the last sample of an
        utterance to its complete text.

        seconds: lengths of the utterances.
        """
        each = np.median(self.elapsed, axis=0)
        of_utterances = np.split(each, np.cumsum(self.counts)[:-1])
        there = [text_times(one, self.chunk_seconds, self.tail_seconds) for one in of_utterances]
        delays = {
            "chunk": each,
            "first_word": [times[first] for times, first in zip(there, self.first) if first >= 0],
            "end": [times[-1] - length for times, length in zip(there, seconds) if len(times)],
        }
        return {
            "chunk_seconds": self.chunk_seconds,
            **{
                f"{name}_p{percent}_ms": 1000.0 * float(np.percentile(values, percent))
                for name, values in delays.items()
                if len(values)
                for percent in (50, 95)
            },
        }


def text_times(compute: np.ndarray, chunk_seconds: float, tail_seconds: float) -> np.ndarray:
    """Seconds from the first sample to the text of each chunk (C,). compute: seconds of the computation of each (C,).

    The tail is as long as what the first chunk needs of speech.
    """
    times, done = np.zeros(len(compute)), 0.0
    for number, seconds in enumerate(compute):
        done = max(done, tail_seconds + number * chunk_seconds) + float(seconds)
        times[number] = done
    return times


def read_chunks(ready: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Chunks:
    """Of the answers of a worker, see :mod:`espnet_todm.bench.models.worker`."""
    elapsed = np.array([np.concatenate(answer["chunks"]) for answer in answers], dtype=float)
    counts = [len(chunks) for chunks in answers[0]["chunks"]]
    return Chunks(elapsed, counts, answers[0]["first"], float(ready["chunk_seconds"]), float(ready["tail_seconds"]))
