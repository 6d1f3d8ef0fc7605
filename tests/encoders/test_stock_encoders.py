"""What ESPnet's Transformer and Branchformer are as supernets: themselves, under the same names, whole and scaled evenly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError
from tests.conftest import BRANCHFORMERS, TRANSFORMERS, branchformer, disturb, speech, transformer

Make = Callable[..., StackedEncoder]
FORMS = [
    *((transformer, options) for options in TRANSFORMERS.values() if "head_dim" not in options),
    *((transformer, {"input_layer": name, "input_size": 40}) for name in ("conv2d2", "conv2d6", "conv2d8", "conv1d2")),
    *((branchformer, options) for options in BRANCHFORMERS.values()),
    (branchformer, {"use_linear_after_conv": True, "cgmlp_groups": 1}),
    (branchformer, {"pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn", "input_layer": "linear"}),
]
EVEN = {transformer: {"depth": 0.67, "ffn": 0.5}, branchformer: {"depth": 0.67, "cgmlp": 0.25}}


def stock_of(ours: StackedEncoder, conf: Any, features: int = 20) -> Any:
    assert conf is not None and ours.stock_class is not None
    stock = ours.stock_class(input_size=features, **conf)  # type: ignore[call-arg]
    return stock.eval()


def noise(features: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 60, features, generator=torch.Generator().manual_seed(0)), torch.tensor([60, 60])


@pytest.mark.parametrize(("make", "options"), FORMS)
def test_full_set_is_espnets_own_encoder(make: Make, options: dict[str, Any]) -> None:
    ours, features = make(**options), options.get("input_size", 20)
    full = ours.component_table().full()
    stock = stock_of(ours, ours.stock_conf(full), features)
    stock.load_state_dict(ours.extracted_state(full))
    torch.testing.assert_close(ours(*noise(features))[0], stock(*noise(features))[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(ours(*noise(features))[1], stock(*noise(features))[1])
    assert stock.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize("make", [transformer, branchformer])
def test_their_defaults_are_espnets(make: Make) -> None:
    encoder = type(make())
    ours, stock = encoder(80), encoder.stock_class(80)  # type: ignore[call-arg, misc]
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}


@pytest.mark.parametrize("make", [transformer, branchformer])
def test_an_even_subnet_is_a_stock_encoder_and_an_uneven_one_is_none(make: Make) -> None:
    ours = make(sizes={"even": EVEN[make], "fewer_heads": {"heads": 0.5}})
    subnet = ours.find_subnet("even")
    stock = stock_of(ours, ours.stock_conf(subnet))
    stock.load_state_dict(ours.extracted_state(subnet))
    sliced = ours.blocks(ours.subsample(*speech()), subnet)
    torch.testing.assert_close(sliced, stock(*speech())[0], atol=1e-6, rtol=1e-5)
    assert ours.stock_conf(ours.find_subnet("fewer_heads")) is None


@pytest.mark.parametrize("make", [transformer, branchformer])
def test_a_stock_checkpoint_becomes_a_supernet_by_init_param(make: Make, tmp_path: Path) -> None:
    from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

    source = make()
    stock = stock_of(source, source.stock_conf(source.component_table().full()))
    disturb(stock)
    torch.save({f"encoder.{name}": value for name, value in stock.state_dict().items()}, tmp_path / "stock.pth")
    holder = torch.nn.Module()
    holder.encoder = make(sizes={"even": EVEN[make]})
    load_pretrained_model(f"{tmp_path / 'stock.pth'}:encoder:encoder", holder, ignore_init_mismatch=False)
    torch.testing.assert_close(holder.encoder(*speech())[0], stock(*speech())[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("one_dimension", [False, True])
def test_a_transformers_positions_have_the_dropout_that_espnet_gives_them(one_dimension: bool) -> None:
    rates = {"dropout_rate": 0.2, "positional_dropout_rate": 0.4}
    ours = transformer(input_layer="conv1d2" if one_dimension else "conv2d", **rates)
    stock = stock_of(ours, ours.stock_conf(ours.component_table().full()))
    assert ours.embed.out[-1].dropout.p == stock.embed.out[-1].dropout.p == (0.4 if one_dimension else 0.2)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (transformer, {"normalize_before": False}, ["normalize_before: False", "True"]),
        (transformer, {"pos_enc_layer_type": "conv"}, ["pos_enc_layer_type: 'conv'", "abs_pos"]),
        (transformer, {"pos_enc_layer_type": "rel_pos"}, ["pos_enc_layer_type: 'rel_pos'", "abs_pos"]),
        (transformer, {"input_layer": "linear", "concat_after": True}, ["input_layer: 'linear'", "concat_after: True"]),
        (transformer, {"macaron_style": True}, ["unknown option 'macaron_style' for todm_transformer"]),
        (branchformer, {"merge_method": "learned_ave"}, ["merge_method: 'learned_ave'", "concat"]),
        (branchformer, {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}, ["fast_selfattn"]),
        (branchformer, {"use_attn": False, "use_ffn": True}, ["use_attn: False", "unknown option 'use_ffn'"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(make: Make, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
