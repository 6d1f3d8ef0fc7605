"""Options of encoders: what ESPnet reads of them, and what is refused, for every encoder."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_todm.encoders.known import encoders
from espnet_todm.encoders.options import SUPERNET_OPTIONS
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError
from tests.conftest import SMALL

KNOWN: dict[str, Any] = encoders()
STOCK = {name: encoder for name, encoder in KNOWN.items() if encoder.stock_class is not None}


@pytest.mark.parametrize("encoder", KNOWN.values(), ids=KNOWN)
def test_espnet_reads_every_option_with_its_default(encoder: type[StackedEncoder]) -> None:
    options = encoder.options_type()
    assert get_default_kwargs(encoder) == {field.name: getattr(options, field.name) for field in fields(options)}
    assert inspect.signature(encoder).parameters["dropout_rate"].annotation is float
    small = {name: value for name, value in SMALL.items() if name in vars(options)}
    assert encoder(input_size=20, **small).options == encoder.options_type(**small)


@pytest.mark.parametrize("encoder", STOCK.values(), ids=STOCK)
def test_options_have_espnets_defaults(encoder: type[StackedEncoder]) -> None:
    ours, stock = get_default_kwargs(encoder), get_default_kwargs(encoder.stock_class)
    unset = {None, ()}  # of ESPnet's list of places for intermediate CTC
    for name in ours.keys() & stock.keys():
        given = tuple(stock[name]) if isinstance(stock[name], list) else stock[name]
        assert ours[name] == given or {ours[name], given} <= unset, name
    known = {*ours, *encoder.options_type.fixed, *encoder.options_type.ignored}
    assert stock.keys() - known == set()


@pytest.mark.parametrize("encoder", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_blocks": "two"}, "encoder_conf.num_blocks: 'two' must be a whole number"),
        ({"num_blocks": True}, "encoder_conf.num_blocks: True must be a whole number"),
        ({"dropout_rate": None}, "encoder_conf.dropout_rate: None must be a number"),
        ({"adaptive_dropout": "yes"}, "encoder_conf.adaptive_dropout: 'yes' must be true or false"),
        ({"head_dim": 2.5}, "encoder_conf.head_dim: 2.5 must be a whole number"),
        ({"input_layer": 2}, "encoder_conf.input_layer: 2 must be text"),
        ({"latency_table": 2}, "encoder_conf.latency_table: 2 must be text"),
        ({"share_shape": "narrow"}, "encoder_conf.share_shape: 'narrow' is unknown; allowed: uniform, ffn_first"),
        ({"blocks": 5}, "blocks: 5 must be a list of mappings with the keys "),
        ({"blocks": [5]}, "blocks[0]: has the keys 5; needed: "),
        ({"output_size": 0}, "output_size: 0 must be a whole number above 0"),
        ({"sizes": 3}, "sizes: 3 must be a mapping from names to sizes"),
    ],
)
def test_a_wrong_value_ends_in_one_line(encoder: type[StackedEncoder], options: dict[str, Any], line: str) -> None:
    assert line in refused(encoder, options)


@pytest.mark.parametrize("encoder", KNOWN.values(), ids=KNOWN)
def test_an_unknown_option_is_told_with_the_nearest_or_with_all(encoder: type[StackedEncoder]) -> None:
    near = refused(encoder, {"output_sizes": 16})
    assert near == f"encoder_conf: unknown option 'output_sizes' for {encoder.name} (did you mean 'output_size'?)"
    far = refused(encoder, {"gamma": 1})
    assert far.startswith(f"encoder_conf: unknown option 'gamma' for {encoder.name}; allowed: ")
    assert all(name in far for name in get_default_kwargs(encoder))


@pytest.mark.parametrize("encoder", KNOWN.values(), ids=KNOWN)
def test_all_that_is_wrong_is_told_at_once(encoder: type[StackedEncoder]) -> None:
    line = refused(encoder, {"gamma": 1, "num_blocks": "two", "input_layer": "embed", "pos_enc_layer_type": "conv"})
    assert all(words in line for words in ("'gamma'", "num_blocks: 'two'", "'embed' takes token ids", "'conv'"))


@pytest.mark.parametrize("encoder", KNOWN.values(), ids=KNOWN)
def test_a_small_model_has_no_options_of_a_supernet(encoder: type[StackedEncoder]) -> None:
    small = {name: value for name, value in SMALL.items() if name in get_default_kwargs(encoder)}
    made = encoder(input_size=20, **small, sizes={"small": 0.5})
    conf = made.extracted_conf(made.find_subnet("small"))
    assert not conf.keys() & {*SUPERNET_OPTIONS, "ffn_chunks", "cgmlp_groups", "conv_groups", "macaron_ffn_chunks"}
    assert conf.keys() <= {"input_size", *get_default_kwargs(encoder)}


def refused(encoder: type[StackedEncoder], options: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        encoder(input_size=20, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
