"""Front ends of our own: their shapes, what padding does to them, their precision, and that ESPnet has none of them."""

from __future__ import annotations

from typing import Any, Optional

import pytest
import torch
from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espnet_todm.encoders.chunks import length_mask
from espnet_todm.encoders.frontends import INPUT_LAYERS, STOCK_INPUTS, STOCK_INPUTS_1D, encoding_of, subsampling_cost
from tests.conftest import conformer, disturb, e_branchformer, flop_counter

STOCK = (*STOCK_INPUTS, *STOCK_INPUTS_1D)
OURS = [name for name in INPUT_LAYERS if name not in STOCK]


def build(name: Optional[str], features: int = 20, size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    embed = INPUT_LAYERS[name].build(features, features if name is None else size, 0.0, nn.Identity())
    disturb(embed)
    return embed


@pytest.mark.parametrize("name", INPUT_LAYERS)
def test_lengths_are_those_of_the_convolutions(name: str) -> None:
    layer, embed = INPUT_LAYERS[name], build(name, features=40)
    for frames in range(layer.shortest(), layer.shortest() + 20):
        made = embed(torch.randn(1, frames, 40), torch.ones(1, 1, frames, dtype=torch.bool))[0].size(1)
        assert made == layer.subsampled(frames) == int(layer.lengths(torch.tensor([frames]))) > 0
    assert layer.subsampled(layer.shortest() - 1) == 0
    with pytest.raises(TooShortUttError, match=f"needs {layer.shortest()} frames"):
        layer.check_length(layer.shortest() - 1)


@pytest.mark.parametrize("name", INPUT_LAYERS)
def test_cost_is_what_torch_counts(name: str) -> None:
    embed = build(name, features=40)
    cost = subsampling_cost(embed, 101, 40)
    assert cost.params == sum(p.numel() for p in embed.parameters())
    with flop_counter() as counter, torch.no_grad():
        embed(torch.randn(1, 101, 40), torch.ones(1, 1, 101, dtype=torch.bool))
    assert cost.flops == counter.get_total_flops()


@pytest.mark.parametrize("name", INPUT_LAYERS)
def test_the_position_encoding_is_found(name: Optional[str]) -> None:
    positions, layer = nn.Identity(), INPUT_LAYERS[name]
    for channels in (None, 6) if layer.slim else (None,):
        embed = layer.make(20, 20 if name is None else 8, 0.0, positions, channels)
        assert encoding_of(embed) is positions
        assert embed(torch.randn(1, 40, 20), torch.ones(1, 1, 40, dtype=torch.bool))[0].size(2) == (8 if name else 20)


STOCK_FORMS = [(encoder, name) for encoder in (conformer, e_branchformer) for name in STOCK]


@pytest.mark.parametrize(("make", "name"), STOCK_FORMS)
def test_input_layers_are_espnets(make: Any, name: Optional[str]) -> None:
    options = {"input_size": 40 if name else 16, "input_layer": name, "num_blocks": 1}
    encoder = make(**options)
    full = encoder.component_table().full()
    conf = encoder.stock_conf(full)
    assert (conf is not None) == (name in encoder.stock_inputs)
    if conf is None:
        return
    stock = encoder.stock_class(input_size=options["input_size"], **conf).eval()
    stock.load_state_dict(encoder.extracted_state(full))
    x, lengths = torch.randn(2, 50, options["input_size"]), torch.tensor([50, 50])
    torch.testing.assert_close(encoder(x, lengths)[0], stock(x, lengths)[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(encoder(x, lengths)[1], stock(x, lengths)[1])


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(7, 40), min_size=2, max_size=4), name=st.sampled_from(OURS), seed=st.integers(0, 999)
)
def test_padding_of_any_value_changes_nothing(lengths: list[int], name: str, seed: int) -> None:
    embed, layer, frames = build(name).double(), INPUT_LAYERS[name], max(lengths)
    x = torch.randn(len(lengths), frames, 20, generator=torch.Generator().manual_seed(seed)).double()
    together = embed(x, length_mask(torch.tensor(lengths), frames))[0]
    for row, length in enumerate(lengths):
        alone = embed(x[row : row + 1, :length], torch.ones(1, 1, length, dtype=torch.bool))[0]
        assert alone.size(1) == layer.subsampled(length)
        torch.testing.assert_close(together[row, : alone.size(1)], alone[0], atol=1e-12, rtol=1e-12)


def test_dw_conv2d_makes_the_frames_of_conv2d_for_a_fraction() -> None:
    frames = torch.arange(1, 200)
    assert torch.equal(INPUT_LAYERS["dw_conv2d"].lengths(frames), INPUT_LAYERS["conv2d"].lengths(frames))
    small, large = (subsampling_cost(build(name, 80, 144), 1000, 80) for name in ("dw_conv2d", "conv2d"))
    assert small.flops < 0.25 * large.flops and small.params < 0.75 * large.params


def test_convolutions_of_dw_conv2d_stay_in_float32_on_a_cpu() -> None:
    embed, x, mask = build("dw_conv2d"), torch.randn(1, 40, 20), torch.ones(1, 1, 40, dtype=torch.bool)
    seen = []
    embed.conv.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embed(x, mask)[0].dtype is torch.bfloat16
    assert seen == [torch.float32]


@pytest.mark.parametrize("name", OURS)
def test_espnet_has_no_such_encoder(name: str) -> None:
    encoder = conformer(input_layer=name, num_blocks=1)
    assert encoder.stock_conf(encoder.component_table().full()) is None
    assert encoder.extracted_conf(encoder.component_table().full())["input_layer"] == name
