"""Random lattices, and the transducer loss by enumeration, for the tests of the transducer's losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Optional

import torch
from hypothesis import strategies as st

VOCABULARY = 6


@dataclass
class Batch:
    """labels (B, U), lengths (B,), label_lengths (B,), logits (B, T, U + 1, V), am (B, T, V), lm (B, U + 1, V)."""

    labels: torch.Tensor
    lengths: torch.Tensor
    label_lengths: torch.Tensor
    logits: torch.Tensor
    am: torch.Tensor
    lm: torch.Tensor

    @property
    def targets(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.labels, self.lengths, self.label_lengths


def lattices(
    lengths: list[tuple[int, int]],
    seed: int = 0,
    extra: tuple[int, int] = (0, 0),
    scale: float = 2.0,
    dtype: torch.dtype = torch.float64,
    vocabulary: int = VOCABULARY,
) -> Batch:
    """A batch of utterances of these (frames, labels), padded by ``extra`` more of both; the blank is 0."""
    generator = torch.Generator().manual_seed(seed)
    frames, rows = (max(sizes) + more for sizes, more in zip(zip(*lengths), extra))
    count = len(lengths)

    def scores(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64) * scale
        return drawn.to(dtype).requires_grad_()

    labels = torch.randint(1, vocabulary, (count, rows), generator=generator)
    return Batch(
        labels,
        *(torch.tensor(sizes) for sizes in zip(*lengths)),
        scores(count, frames, rows + 1),
        scores(count, frames),
        scores(count, rows + 1),
    )


def sizes(most_frames: int = 6, most_labels: int = 5, least_labels: int = 0) -> st.SearchStrategy:
    """(frames, labels) of the utterances of a batch."""
    pair = st.tuples(st.integers(1, most_frames), st.integers(least_labels, most_labels))
    return st.lists(pair, min_size=1, max_size=3)


def by_enumeration(log_probs: torch.Tensor, labels: list[int], kept: Optional[list[list[int]]] = None) -> torch.Tensor:
    """Loss of one utterance, log_probs (T, U + 1, V), by walking every alignment; only rows ``kept`` of each frame.

    An alignment is the choice of which of the first T + U - 1 steps are labels; the last one is a blank.
    """
    frames, count = len(log_probs), len(labels)
    paths = []
    for chosen in combinations(range(frames + count - 1), count):
        t = u = 0
        score, inside = log_probs.new_zeros(()), True
        for step in range(frames + count):
            inside = inside and (kept is None or u in kept[t])
            if step in chosen:
                score, u = score + log_probs[t, u, labels[u]], u + 1
            else:
                score, t = score + log_probs[t, u, 0], t + 1
        if inside:
            paths.append(score)
    return -torch.stack(paths).logsumexp(0) if paths else log_probs.new_tensor(math.inf)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the sum over utterances, each weighted differently, so that a mix-up of utterances shows."""
    weights = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), inputs)
