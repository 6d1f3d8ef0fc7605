"""Defects 1 and 2 of OrthoSoftmax's reference code (arXiv 2501.18895), beside a copy of each fault."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.feed_forward import ElasticFeedForward

CHUNKS, KEPT = 4, (0, 2)


def feed_forward() -> ElasticFeedForward:
    torch.manual_seed(0)
    return ElasticFeedForward(6, 12, CHUNKS, 0.0, nn.SiLU()).eval()


def masked(module: ElasticFeedForward, x: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """What keeping some hidden units means: the others give nothing."""
    return F.linear(F.silu(module.w_1(x)) * units, module.w_2.weight, module.w_2.bias)


def test_defect_1_a_kept_unit_keeps_its_row_and_its_column() -> None:
    module, x = feed_forward(), torch.randn(2, 5, 6)
    units = torch.tensor([1.0, 0, 1, 0]).repeat_interleave(3)
    torch.testing.assert_close(module(x, kept=KEPT), masked(module, x, units))
    # The fault: rows of W1 cut in runs, columns of W2 in strides.
    rows = module.w_1.weight.view(CHUNKS, 3, 6)[list(KEPT)].reshape(-1, 6)
    bias = module.w_1.bias.view(CHUNKS, 3)[list(KEPT)].reshape(-1)
    columns = module.w_2.weight.view(6, 3, CHUNKS)[:, :, list(KEPT)].reshape(6, -1)
    faulty = F.linear(F.silu(F.linear(x, rows, bias)), columns, module.w_2.bias)
    assert not torch.allclose(faulty, masked(module, x, units), atol=1e-3)


def test_defect_1_a_kept_head_keeps_its_part_of_the_output_projection() -> None:
    torch.manual_seed(0)
    module = ElasticAttention(8, 4, 2, 0.0, relative=None).eval()
    x, mask = torch.randn(2, 5, 8), torch.ones(2, 1, 5, dtype=torch.bool)
    gates = torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(module(x, None, mask, kept=KEPT), module(x, None, mask, gates=gates))
    columns = module.linear_out.weight.view(8, 2, 4)[:, :, list(KEPT)].reshape(8, -1)
    assert not torch.equal(columns, module.take("linear_out.weight", KEPT))


def test_defect_2_a_gate_acts_once() -> None:
    module, x = feed_forward(), torch.randn(2, 5, 6)
    gates = torch.full((CHUNKS,), 0.5)
    hidden = F.silu(module.w_1(x)) @ module.w_2.weight.T
    open_share = 1 - 0.5**CHUNKS
    torch.testing.assert_close(module(x, gates=gates), 0.5 * hidden + open_share * module.w_2.bias)
    assert not torch.allclose(module(x, gates=gates), 0.25 * hidden + open_share * module.w_2.bias)  # the fault
