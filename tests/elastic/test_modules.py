"""Elastic modules one by one: how tensors are cut, and what a slice, a gate and a component mean in each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from espnet_todm.elastic.attention import ElasticAttention, _relative_to_absolute, _slipped
from espnet_todm.elastic.base import Context, Cut, ElasticModule, any_open, share_of, spread
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.elastic.cgmlp import ElasticCgMlp
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.elastic.state_space import ElasticStateSpace
from espnet_todm.encoders.conformer import BlockShape, ConformerOptions, ElasticConformerBlock
from espnet_todm.errors import UserError
from tests.conftest import disturb

few = settings(max_examples=20, deadline=None)
SIZE, FRAMES = 8, 11
components = st.integers(1, 5)


@st.composite
def kept_of(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """A number of components and a non-empty choice of them, ascending."""
    total = draw(components)
    return total, tuple(sorted(draw(st.sets(st.integers(0, total - 1), min_size=1))))


@few
@given(kept_of(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_cut_takes_the_runs_of_each_copy(chosen: tuple, width: int, copies: int, dim: int) -> None:
    total, kept = chosen
    shape = [3, 3]
    shape[dim] = copies * total * width
    tensor = torch.randn(shape)
    rows = [(copy * total + index) * width + unit for copy in range(copies) for index in kept for unit in range(width)]
    expected = tensor.index_select(dim, torch.tensor(rows))
    module = ElasticModule(total)
    assert torch.equal(module.cut(tensor, Cut(dim, copies), kept), expected)
    assert module.cut(tensor, Cut(dim, copies), None) is tensor


def test_adjacent_components_are_views() -> None:
    module, weight = ElasticModule(4), torch.randn(8, 3)
    assert module.cut(weight, Cut(0), (1, 2)).data_ptr() == weight[2:].data_ptr()
    assert module.cut(weight, Cut(0), (0, 2)).data_ptr() != weight.data_ptr()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 4))
def test_gates(values: list[float], width: int) -> None:
    gates = torch.tensor(values)
    assert 0 <= any_open(gates) <= 1 + 1e-6
    assert bool(any_open(gates.round()) == 1) == bool(gates.round().any())
    assert spread(gates, width * len(values)).tolist() == [g for g in gates.tolist() for _ in range(width)]
    assert share_of(None, len(values)) == 1 and share_of((0,), len(values)) == 1 / len(values)


def feed_forward(chunks: int) -> ElasticModule:
    return ElasticFeedForward(SIZE, 6 * chunks, chunks, 0.0, nn.SiLU())


def convolution(groups: int, norm: str = "layer_norm") -> ElasticModule:
    return ElasticConvolution(SIZE, 4 * groups, groups, 3, norm, nn.SiLU())


def attention(heads: int, relative: str = "latest") -> ElasticModule:
    return ElasticAttention(SIZE, heads, 4, 0.0, relative)


def cgmlp(groups: int) -> ElasticModule:
    return ElasticCgMlp(SIZE, 8 * groups, groups, 3, 0.0, nn.SiLU())


def state_space(pairs: int) -> ElasticModule:
    return ElasticStateSpace(SIZE, 2 * pairs, 3, nn.SiLU(), state=4, stack=2)


def causal_state_space(heads: int) -> ElasticModule:
    return ElasticStateSpace(SIZE, heads, 2, nn.SiLU(), state=4, gating=False, bidirectional=False)


MAKERS = [feed_forward, convolution, attention, cgmlp, state_space, causal_state_space]


def call(module: ElasticModule, x: Tensor, kept: Any = None, gates: Any = None) -> Tensor:
    positions = torch.randn(1, 2 * FRAMES - 1, SIZE, generator=torch.Generator().manual_seed(1))
    return module.run(x, Context(positions, torch.ones(1, 1, FRAMES, dtype=torch.bool)), kept, gates)


def built(make: Any, total: int) -> ElasticModule:
    torch.manual_seed(0)
    module: ElasticModule = make(total)
    disturb(module)
    return module.eval()


@pytest.mark.parametrize("make", MAKERS)
@few
@given(chosen=kept_of())
def test_slice_gate_and_small_module_agree_and_are_costed(make: Any, chosen: tuple) -> None:
    total, kept = chosen
    module, small, x = built(make, total), make(len(kept)).eval(), torch.randn(2, FRAMES, SIZE)
    small.load_state_dict(module.sliced_state(kept))
    sliced = call(module, x, kept=kept)
    torch.testing.assert_close(sliced, call(small, x))
    gates = torch.zeros(total).index_fill(0, torch.tensor(kept), 1.0)
    torch.testing.assert_close(call(module, x, gates=gates), sliced, atol=2e-6, rtol=1e-5)
    count = module.params_shared() + len(kept) * module.params_per_component()
    assert count == sum(p.numel() for p in small.parameters())
    assert small.flops(FRAMES) == pytest.approx(module.flops(FRAMES) * len(kept) / total)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_not_kept_gets_no_gradient(make: Any) -> None:
    module = built(make, 3)
    call(module, torch.randn(2, FRAMES, SIZE), kept=(0, 2)).square().sum().backward()
    for name, parameter in module.named_parameters():
        if name in module.cuts and name != "linear_k.bias":  # which softmax does not see
            away, there = (module.cut(parameter.grad, module.cuts[name], kept) for kept in ((1,), (0, 2)))
            assert not away.any() and there.any(), name


def test_feed_forward_by_hand() -> None:
    module, x = built(feed_forward, 2), torch.randn(1, 2, SIZE)
    units = slice(6, 12)
    hidden = nn.functional.silu(x @ module.w_1.weight[units].T + module.w_1.bias[units])
    torch.testing.assert_close(module(x, kept=(1,)), hidden @ module.w_2.weight[:, units].T + module.w_2.bias)


def test_cgmlp_by_hand() -> None:
    """Channels 4..7 of each half of 16 units, normalised among themselves."""
    module, x, kept = built(cgmlp, 2), torch.randn(1, FRAMES, SIZE), slice(4, 8)
    first, second = module.channel_proj1[0], module.channel_proj2
    value, gate = nn.functional.gelu(first(x)).split(8, -1)
    gate = gate[..., kept]
    gate = (gate - gate.mean(-1, keepdim=True)) / gate.var(-1, unbiased=False, keepdim=True).sqrt()
    gate = gate * module.csgu.norm.weight[kept] + module.csgu.norm.bias[kept]
    gate = module.csgu.conv(nn.functional.pad(gate, (4, 0)).transpose(1, 2)).transpose(1, 2)[..., kept]
    hidden = value[..., kept] * nn.functional.silu(gate)
    expected = nn.functional.linear(hidden, second.weight[:, kept], second.bias)
    torch.testing.assert_close(call(module, x, kept=(1,)), expected, atol=1e-6, rtol=1e-5)


def test_half_open_gate_acts_once() -> None:
    module, x = built(feed_forward, 1), torch.randn(1, 2, SIZE)
    torch.testing.assert_close(module(x, gates=torch.tensor([0.5])), 0.5 * module(x))


@pytest.mark.parametrize("relative", [True, False])
def test_attention_ignores_padding(relative: bool) -> None:
    module = built(lambda heads: attention(heads, relative), 2)
    x, positions = torch.randn(1, FRAMES, SIZE), torch.randn(1, 2 * FRAMES - 1, SIZE) if relative else None
    mask = (torch.arange(FRAMES) < 7).view(1, 1, -1)
    changed = torch.where(mask.transpose(1, 2), x, 100.0)
    torch.testing.assert_close(module(x, positions, mask)[:, :7], module(changed, positions, mask)[:, :7])


@pytest.mark.parametrize("frames, earlier", [(1, 0), (2, 0), (7, 0), (1, 4), (3, 5)])
def test_each_key_gets_the_score_of_its_offset(frames: int, earlier: int) -> None:
    """Against the definition, entry by entry; the operations of an ONNX file give the same, gradient included."""
    keys = frames + earlier
    scores = torch.randn(2, 3, frames, keys + frames - 1, requires_grad=True)
    shifted = _relative_to_absolute(scores)
    for query in range(frames):
        for key in range(keys):  # query i is at frame i + earlier; column 0 has the offset keys - 1
            assert torch.equal(shifted[..., query, key], scores[..., query, keys - 1 - (query + earlier - key)])
    ahead = torch.randn_like(shifted)
    exported = _slipped(scores)
    assert torch.equal(exported, shifted)
    assert torch.equal(*(torch.autograd.grad(result, scores, ahead)[0] for result in (exported, shifted)))


def test_relative_attention_sees_only_the_distance() -> None:
    """With equal keys and values everywhere, scores depend on i - j alone, through the positions."""
    module = built(attention, 2)
    query = module._heads(torch.ones(1, FRAMES, SIZE), "linear_q", None)
    positions = torch.randn(1, 2 * FRAMES - 1, SIZE)
    mask = torch.ones(1, 1, FRAMES, dtype=torch.bool)
    scores = module._scores(query, torch.zeros_like(query), positions, mask, None)[0, 0]
    for distance in range(1 - FRAMES, FRAMES):
        diagonal = torch.diagonal(scores, -distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0, 1] != scores[1, 0]


def block(**changes: Any) -> ElasticConformerBlock:
    options = {
        "output_size": SIZE,
        "head_dim": 4,
        "pos_enc_layer_type": "none",
        "cnn_module_kernel": 3,
        "linear_units": 8,
    }
    rest = {"macaron_style": True, "conv_norm": "layer_norm", "dropout_rate": 0.0}
    shape = BlockShape(macaron_ffn=8, macaron_chunks=2, heads=2, conv=8, conv_groups=1, ffn=8, ffn_chunks=2)
    torch.manual_seed(0)
    return ElasticConformerBlock(ConformerOptions(**{**options, **rest, **changes}), shape).eval()


def test_a_module_that_keeps_nothing_is_skipped_and_an_empty_block_is_the_identity() -> None:
    layer, x, mask = block(), torch.randn(1, FRAMES, SIZE), torch.ones(1, 1, FRAMES, dtype=torch.bool)
    disturb(layer)
    assert layer(x, None, mask, LayerChoice(kept={})) is x
    only = layer(x, None, mask, LayerChoice(kept={"feed_forward": (0, 1)}))
    expected = layer.norm_final(x + 0.5 * layer.feed_forward(layer.norm_ff(x)))
    torch.testing.assert_close(only, expected)
    closed = {name: torch.zeros(module.components) for name, _, module in layer.elastic_modules()}
    torch.testing.assert_close(layer(x, None, mask, LayerChoice(gates=closed)), x)


def test_block_counts_every_parameter() -> None:
    layer = block()
    total = sum(c.cost.params for c in layer.components(0, FRAMES, 1.0))
    total += sum(cost.params for cost in layer.module_costs(FRAMES, 1.0).values()) + layer.layer_cost().params
    assert total == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ElasticFeedForward(8, 10, 3, 0.0, nn.SiLU()), ["10", "3 chunks"]),
        (lambda: ElasticFeedForward(8, 10, 0, 0.0, nn.SiLU()), ["10", "0 chunks"]),
        (lambda: ElasticConvolution(8, 8, 1, 4, "layer_norm", nn.SiLU()), ["cnn_module_kernel", "4", "odd"]),
        (lambda: ElasticConvolution(8, 8, 3, 3, "layer_norm", nn.SiLU()), ["conv_groups", "3", "8"]),
        (lambda: ElasticCgMlp(8, 16, 3, 3, 0.0, nn.SiLU()), ["cgmlp_groups", "3", "16"]),
        (lambda: ElasticCgMlp(8, 16, 1, 4, 0.0, nn.SiLU()), ["cgmlp_conv_kernel", "4", "odd"]),
        (lambda: ElasticStateSpace(8, 3, 2, nn.SiLU()), ["ssm_heads", "3", "even"]),
        (lambda: ElasticStateSpace(8, 2, 2, nn.SiLU(), state=5), ["ssm_state", "5", "even"]),
        (lambda: ElasticStateSpace(8, 2, 2, nn.SiLU(), init="legs"), ["ssm_init", "legs", "inv"]),
        (lambda: ElasticConvolution(8, 8, 1, 3, "rms_norm", nn.SiLU()), ["conv_norm", "rms_norm", "batch_norm"]),
    ],
)
def test_impossible_shapes_are_refused(make: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_an_open_gate_has_the_gradient_of_a_product(zeros: int) -> None:
    gates = torch.tensor([0.3, 1.0, 0.8, 0.0], dtype=torch.float64)
    gates[:zeros] = 1.0
    gates.requires_grad_()
    (gradient,) = torch.autograd.grad(any_open(gates), gates)
    (expected,) = torch.autograd.grad(1 - (1 - gates).prod(), gates)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("number", [1, 5, 130])
def test_its_gradient_is_that_of_finite_differences(number: int) -> None:
    gates = 0.1 * torch.rand(number, dtype=torch.float64)
    assert torch.autograd.gradcheck(any_open, gates.requires_grad_())
