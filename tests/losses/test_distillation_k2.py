"""Distillation on a lattice that k2 pruned. Skipped where k2 is not installed; ``make test-k2`` runs it where it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import lattice_distillation
from tests.losses.lattices import Batch, for_k2, gradients, lattices, sizes

k2 = pytest.importorskip("k2")
pytestmark = pytest.mark.k2


def ranges_of_k2(batch: Batch, boundary: torch.Tensor, width: int) -> torch.Tensor:
    """(B, T, S), from k2's own simple loss."""
    _, occupation = k2.rnnt_loss_simple(
        batch.lm, batch.am, batch.labels, 0, boundary=boundary, reduction="none", return_grad=True
    )
    return k2.get_rnnt_prune_ranges(*occupation, boundary, width)


def three_classes(log_probs: torch.Tensor, label: int) -> torch.Tensor:
    """Log-probabilities of {label, blank 0, rest} from those (V,) of all."""
    rest = [other for other in range(1, len(log_probs)) if other != label]
    return torch.stack([log_probs[label], log_probs[0], log_probs[rest].logsumexp(0)])


def by_hand(teacher: torch.Tensor, student: torch.Tensor, batch: Batch, ranges: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of the classes, summed over the nodes of each full lattice (B, T, U + 1, V) that k2 keeps."""
    teacher, student = (logits.log_softmax(-1) for logits in (teacher.detach(), student))
    losses = []
    for row, (frames, labels) in enumerate(zip(batch.lengths.tolist(), batch.label_lengths.tolist())):
        nodes = [(t, u) for t in range(frames) for u in ranges[row, t].tolist() if u <= labels]
        loss = torch.zeros((), dtype=student.dtype)
        for t, u in nodes:
            at = teacher[row, t, u], student[row, t, u]
            if u < labels:
                p, q = (three_classes(x, int(batch.labels[row, u])) for x in at)
            else:  # no label is next
                p, q = (torch.stack([x[0], x[1:].logsumexp(0)]) for x in at)
            loss = loss + (p.exp() * (p - q)).sum()
        losses.append(loss)
    return torch.stack(losses).mean()


@settings(max_examples=25, deadline=None)
@given(utterances=sizes(7, 5, least_labels=1), seed=st.integers(0, 2**31), width=st.integers(2, 7))
def test_divergence_is_that_of_the_nodes_that_k2_keeps(utterances: list, seed: int, width: int) -> None:
    """k2 prunes both sides of a joiner tanh(am + lm); teacher and student share the teacher's ranges."""
    student, boundary = for_k2(utterances, seed)
    teacher = lattices(list(zip(student.lengths.tolist(), student.label_lengths.tolist())), seed + 1)
    ranges = ranges_of_k2(teacher, boundary, width)
    pruned = [torch.tanh(sum(k2.do_rnnt_pruning(side.am, side.lm, ranges))) for side in (teacher, student)]
    found = lattice_distillation(*pruned, *student.targets, Divergence(kind="kl"), ranges=ranges)
    full = [torch.tanh(side.am.unsqueeze(2) + side.lm.unsqueeze(1)) for side in (teacher, student)]
    expected = by_hand(*full, student, ranges)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(gradients(loss.view(1), student.am, student.lm) for loss in (found, expected)))
