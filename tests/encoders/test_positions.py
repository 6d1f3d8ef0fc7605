"""Position encodings are ESPnet's and stay what they are, whatever ran before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet.nets.pytorch_backend.transformer import embedding

from espnet_todm.encoders.positions import POSITIONS, NoPositions

KINDS = [kind for kind in POSITIONS.values() if kind is not NoPositions]


def parts(encoded: Any) -> tuple[torch.Tensor, ...]:
    return encoded if isinstance(encoded, tuple) else (encoded,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [7, 40])
def test_they_are_espnets_within_the_table_and_beyond(kind: type, frames: int) -> None:
    (theirs,) = [base for base in kind.__bases__ if base.__module__ == embedding.__name__]
    x = torch.randn(2, frames, 8)
    for ours, expected in zip(parts(kind(8, 0.0, 12)(x)), parts(theirs(8, 0.0, 12)(x))):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "before", [torch.zeros(1, 5, 8).bfloat16(), torch.zeros(1, 50, 8), torch.zeros(1, 50, 8).half()]
)
def test_what_ran_before_changes_nothing(kind: type, before: torch.Tensor) -> None:
    encoding, x = kind(8, 0.0, 12), torch.randn(2, 7, 8)
    expected = parts(encoding(x))
    assert all(part.dtype == before.dtype for part in parts(encoding(before))[1:])
    assert all(torch.equal(now, then) for now, then in zip(parts(encoding(x)), expected))
