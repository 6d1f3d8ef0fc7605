"""Consistency between subnets: its value by the formula, its gradient by finite differences."""

from __future__ import annotations

import pytest
import torch

from espnet_todm.losses.consistency import ctc_consistency

LENGTHS = torch.tensor([4, 2])


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_value_is_that_of_the_formula() -> None:
    """A loop over frames and tokens."""
    ours, expected = logits(0), 0.0
    for other in (logits(1), logits(2)):
        p, q = torch.softmax(other, -1), torch.softmax(ours, -1)
        for row, length in enumerate(LENGTHS.tolist()):
            for frame in range(length):
                expected += (
                    sum(float(p[row, frame, v] * (p[row, frame, v] / q[row, frame, v]).log()) for v in range(5)) / 2
                )
    assert float(ctc_consistency([logits(1), logits(2)], ours, LENGTHS)) == pytest.approx(expected, rel=1e-9)
    assert float(ctc_consistency([ours], ours, LENGTHS)) == pytest.approx(0, abs=1e-12)
    assert float(ctc_consistency([], ours, LENGTHS)) == 0


def test_gradient_is_that_of_finite_differences() -> None:
    others = [logits(1), logits(2)]
    assert torch.autograd.gradcheck(lambda x: ctc_consistency(others, x, LENGTHS), [logits(0).requires_grad_()])


def test_only_the_subnet_itself_gets_a_gradient_on_its_valid_frames() -> None:
    ours, other = logits(0).requires_grad_(), logits(1).requires_grad_()
    ctc_consistency([other], ours, LENGTHS).backward()
    assert other.grad is None
    assert bool(ours.grad[0].any()) and not bool(ours.grad[1, 2:].any())
    expected = (torch.softmax(ours, -1) - torch.softmax(other, -1)).detach()[0] / 2
    torch.testing.assert_close(ours.grad[0], expected)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        ctc_consistency([logits(1)[:, :3]], logits(0), LENGTHS)
