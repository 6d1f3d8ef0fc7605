"""Greedy search against k2's best path through the CTC topology. Skipped where k2 is not installed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.searches import make_search
from tests.tiny_model import TOKENS, tiny_model

k2 = pytest.importorskip("k2")
pytestmark = pytest.mark.k2


def ranked(frames: list[int], seed: int) -> torch.Tensor:
    """(B, T, V) log-probabilities: in each frame the labels in random order, so far apart that no two paths are alike."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(frames), max(frames), len(TOKENS), generator=generator).argsort(-1).float()
    order[..., 0] += 4.5  # blanks, that labels be repeated across them
    return order.log_softmax(-1)


def best_path(log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    """Labels of each utterance on the shortest path through k2's topology; lengths (B,) must not increase."""
    starts = torch.zeros_like(lengths)
    segments = torch.stack([torch.arange(len(lengths)), starts, lengths], 1).to(torch.int32)
    topology = k2.ctc_topo(log_probs.shape[-1] - 1)
    lattices = k2.intersect_dense_pruned(
        topology,
        k2.DenseFsaVec(log_probs, segments),
        search_beam=1e4,
        output_beam=1e4,
        min_active_states=len(TOKENS),
        max_active_states=10**4,
    )
    paths = k2.shortest_path(lattices, use_double_scores=True)
    labels = [paths[row].aux_labels for row in range(len(lengths))]
    return [row[row > 0].tolist() for row in labels]  # the blank is 0, the end -1


@settings(max_examples=30, deadline=None)
@given(frames=st.lists(st.integers(1, 12), min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_greedy_search_is_the_best_path(frames: list[int], seed: int) -> None:
    frames = sorted(frames, reverse=True)  # as k2 wants them
    model = tiny_model()
    model.ctc.ctc_lo = torch.nn.Identity()
    log_probs, lengths = ranked(frames, seed), torch.tensor(frames)
    found = make_search(model, SearchOptions())(log_probs, lengths)
    assert [[label for label in row if label] for row in found] == best_path(log_probs, lengths)
