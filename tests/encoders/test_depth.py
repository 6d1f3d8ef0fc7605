"""Dropped layers: which, where, in all subnets of a step alike, and never outside of training."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.encoders.depth import WHOLE, DepthOptions
from tests.conftest import conformer, e_branchformer, random_subnet, speech

RATES = [0.0, 0.2, 0.5]


@given(step=st.integers(0, 10**6), drop=st.floats(0, 0.9), rates=st.lists(st.floats(0, 0.9), min_size=1, max_size=9))
def test_the_draw_depends_on_the_step_alone(step: int, drop: float, rates: list[float]) -> None:
    options = DepthOptions(drop, tuple(rates))
    drawn = options.draw(step)
    random.seed(step)
    torch.manual_seed(step + 1)
    assert DepthOptions(drop, tuple(rates)).draw(step) == drawn
    assert drawn.scales == {layer: 1 / (1 - rate) for layer, rate in enumerate(rates) if rate}


def test_layers_are_dropped_as_often_as_options_say() -> None:
    steps = 4000
    draws = [DepthOptions(0.1, (0.0, 0.5)).draw(step).without for step in range(steps)]
    shares = [sum(layer in drawn for drawn in draws) / steps for layer in (0, 1)]
    assert shares == pytest.approx([0.1, 1 - 0.9 * 0.5], abs=0.03)
    assert DepthOptions(0.0, (0.0, 0.0)).draw(3) is WHOLE


def test_without_a_step_torchs_generator_decides() -> None:
    """Plain ESPnet trains an extracted model so."""
    options, drawn = DepthOptions(0.5, (0.0,) * 8), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(options.draw(None))
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=10, deadline=None)
@given(step=st.integers(0, 500), seed=st.integers(0, 500))
def test_a_step_computes_every_subnet_without_the_same_layers(step: int, seed: int) -> None:
    encoder = conformer(layer_drop_rate=0.4, conv_norm="layer_norm").train()
    subsampled = encoder.subsample(*speech(), step)
    subnet = random_subnet(encoder, seed)
    left = [layer for layer in sorted(subnet.layers) if layer not in subsampled.depth.without]
    expected = subsampled.hidden
    for layer in left:
        expected = _block(encoder, layer, expected, subsampled, subnet.layers[layer])
    torch.testing.assert_close(encoder.blocks(subsampled, subnet), encoder.output_norm(expected))


def _block(encoder, layer, hidden, subsampled, kept):  # type: ignore[no-untyped-def]
    from espnet_todm.elastic.block import LayerChoice

    return encoder.encoders[layer](hidden, subsampled.positions, subsampled.mask, LayerChoice(kept=kept))


@pytest.mark.parametrize("make", [conformer, e_branchformer])
def test_nothing_is_dropped_outside_of_training(make) -> None:  # type: ignore[no-untyped-def]
    encoder = make(layer_drop_rate=0.9)
    assert encoder.subsample(*speech(), 0).depth is WHOLE and encoder.subsample(*speech()).depth is WHOLE
    torch.testing.assert_close(encoder(*speech())[0], make()(*speech())[0])


def test_what_a_layer_adds_is_scaled_as_in_espnet() -> None:
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    ours = conformer(stochastic_depth_rate=RATES, conv_norm="batch_norm")
    full = ours.component_table().full()
    stock = ConformerEncoder(input_size=20, **ours.stock_conf(full))
    stock.load_state_dict(ours.extracted_state(full))
    step = next(step for step in range(100) if not DepthOptions(0.0, tuple(RATES)).draw(step).without)
    seed = next(seed for seed in range(100) if _none_dropped(seed))
    torch.manual_seed(seed)
    theirs = stock.train()(*speech())[0]
    ours.train()
    torch.testing.assert_close(ours.blocks(ours.subsample(*speech(), step)), theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, ours.eval()(*speech())[0], atol=1e-2)


def _none_dropped(seed: int) -> bool:
    """Whether ESPnet keeps all layers with this seed; it draws nothing where a rate is 0."""
    torch.manual_seed(seed)
    return all(torch.rand(1).item() >= rate for rate in RATES if rate)


def test_a_small_model_has_the_rates_of_its_own_layers() -> None:
    encoder = conformer(stochastic_depth_rate=RATES, layer_drop_rate=0.1, sizes={"small": {"layers": [0, 2]}})
    small = encoder.find_subnet("small")
    for conf in (encoder.extracted_conf(small), encoder.stock_conf(small)):
        assert conf["stochastic_depth_rate"] == [0.0, 0.5] and conf["layer_drop_rate"] == 0.1
    none = conformer(stochastic_depth_rate=0)
    rate = none.stock_conf(none.component_table().full())["stochastic_depth_rate"]
    assert isinstance(rate, float)  # ESPnet takes a whole number for a list
