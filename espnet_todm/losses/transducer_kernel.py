"""The recursion of :mod:`espnet_todm.losses.transducer_lattice` as one kernel launch, written in Triton.

Imports Triton, which torch's builds for GPUs bring. Ask :func:`has_kernel` first.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from espnet_todm.errors import one_line


def has_kernel(device: torch.device) -> bool:
    """Whether the kernel runs on this device: a GPU for which Triton can compile. Says once if it should and does not."""
    found = device.type == "cuda" and torch.cuda.is_available() and find_spec("triton") is not None
    return found and _compiles(device)


@cache
def _compiles(device: torch.device) -> bool:
    alpha = torch.zeros(2, 1, 2, dtype=torch.float64, device=device)
    try:
        sweep(alpha, torch.zeros(1, 2, 1, 1, dtype=torch.float64, device=device))
    except Exception as error:  # no C compiler, a GPU that is too old, ...
        logging.warning(
            "transducer: Triton does not run here (%s), so the recursion takes more launches", one_line(error)
        )
        return False
    return True


def sweep(alpha: Tensor, moves: Tensor) -> None:
    """Fill alpha (D + 1, N, U + 2) from its first anti-diagonal on. Column 0 is a border and stays as it is.

    moves (D, 2, N, U + 1): log-probabilities of the label and of the blank into each node of the next anti-diagonal. Both
    are contiguous float64.
    """
    import triton

    from espnet_todm.losses.transducer_triton import diagonals_of_one_lattice

    diagonals, _, lattices, rows = moves.shape
    block = triton.next_power_of_2(rows)
    warps = min(8, max(1, block // 64))
    diagonals_of_one_lattice[(lattices,)](alpha, moves, diagonals, lattices, rows, BLOCK=block, num_warps=warps)
