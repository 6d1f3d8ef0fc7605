"""Measured latencies as a file and as costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_todm.components import ComponentTable
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.encoders.latency import FORMAT, LatencyTable, fingerprint, load_latency, save_latency
from espnet_todm.errors import UserError
from espnet_todm.sizes import uniform_order
from espnet_todm.util.files import read_json
from tests.conftest import conformer, random_subnet, synthetic_latency

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 10**6)
ENCODER = conformer(conv_groups=2)
MEASURED = synthetic_latency(ENCODER)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_latency(tmp_path / "latency.json", MEASURED)
    return tmp_path / "latency.json"


def table_of(measured: LatencyTable) -> ComponentTable:
    return measured.apply(ENCODER.component_table())


@few
@given(seed=seeds)
def test_latency_adds_up_over_what_is_kept(seed: int) -> None:
    subnet = random_subnet(ENCODER, seed)
    expected = MEASURED.rest + sum(MEASURED.layers[layer] for layer in subnet.layers)
    for layer, modules in subnet.layers.items():
        for module, kept in modules.items():
            line = MEASURED.modules[layer, module]
            expected += line.fixed + line.per_component * len(kept)
    assert table_of(MEASURED).amount(subnet, "latency") == pytest.approx(expected)


@few
@given(one=seeds, other=seeds)
def test_more_components_take_no_less_time(one: int, other: int) -> None:
    small, more = random_subnet(ENCODER, one, 0.3).components, random_subnet(ENCODER, other, 0.3).components
    table = table_of(MEASURED)
    assert table.amount(small | more, "latency") >= table.amount(small, "latency") * (1 - 1e-12)


def test_applying_changes_latency_alone() -> None:
    plain, measured = ENCODER.component_table(), table_of(MEASURED)
    assert [c.key for c in measured.components] == [c.key for c in plain.components]
    for criterion in ("params", "flops"):
        assert measured.amount(measured.full(), criterion) == pytest.approx(plain.amount(plain.full(), criterion))


def test_round_trip(file: Path) -> None:
    assert load_latency(file, ENCODER, ENCODER.component_table()) == MEASURED


def test_the_fingerprint_is_of_the_shape_alone() -> None:
    def of(**options: Any) -> str:
        encoder = conformer(**options)
        return fingerprint(encoder, encoder.component_table())

    same = [{}, {"sizes": {"small": 0.6}}, {"sizes": {"small": 0.6}, "subnet": "small"}, {"dropout_rate": 0.3}]
    assert len({of(**options) for options in same}) == 1
    other: list[dict[str, Any]] = [
        {"num_blocks": 4}, {"linear_units": 64}, {"conv_groups": 2}, {"ffn_chunks": 8}, {"attention_heads": 2},
        {"conv_norm": "layer_norm"}, {"activation_type": "relu"}, {"cnn_module_kernel": 7}, {"input_size": 24},
        {"input_layer": "conv2d2"}, {"input_channels": 6},
        {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
    ]  # fmt: skip
    assert len({of(), *(of(**options) for options in other)}) == 1 + len(other)


def test_the_measurement_of_another_encoder_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match=r"latency\.json was measured on an encoder of another shape") as error:
        conformer(num_blocks=4, conv_groups=2, latency_table=str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "espnet_todm.card/1"}, ["no latency table", FORMAT]),
        ({"fingerprint": None}, ["another shape"]),
        ({"modules": {}}, ["damaged"]),
        ({"modules": {"0": {"self_attn": {"fixed": 1}}}}, ["damaged", "per_component"]),
        ({"layers": [0, 0, 0]}, ["damaged"]),
        ({"layers": {"0": -1.0, "1": 0.0, "2": 0.0}}, ["damaged", "-1.0"]),
        ({"rest": "fast"}, ["damaged", "fast"]),
        ({"rest": float("nan")}, ["damaged", "nan"]),
        ({"rest": 0}, ["damaged", "rest"]),
    ],
)
def test_a_file_of_another_form_is_one_clear_line(file: Path, change: dict[str, Any], words: list[str]) -> None:
    file.write_text(json.dumps({**read_json(file), **change}))  # which write_json would not do with NaN
    with pytest.raises(UserError) as error:
        load_latency(file, ENCODER, ENCODER.component_table())
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in ["latency_table", "latency.json", *words]), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):
        conformer(latency_table=str(tmp_path / "nothing.json"))


def test_shares_of_latency_are_met_up_to_one_component(file: Path) -> None:
    specs = {"medium": 0.8, "small": 0.6}
    encoder = conformer(conv_groups=2, sizes=specs, criterion="latency", latency_table=str(file))
    table = encoder.component_table()
    assert encoder.criterion == "latency" and list(encoder.sizes) == ["full", "medium", "small"]
    assert encoder.sizes["small"].components < encoder.sizes["medium"].components
    for name, share in specs.items():
        kept = encoder.sizes[name].components
        following = next(key for key in uniform_order(table) if key not in kept)
        assert table.share(encoder.sizes[name], "latency") <= share
        assert table.share(replace(encoder.sizes[name], components=kept | {following}), "latency") > share


def test_the_criterion_latency_needs_a_table() -> None:
    with pytest.raises(UserError, match=r"criterion: 'latency' has not been measured.*bench components"):
        conformer(criterion="latency")


def test_a_table_without_the_criterion_shows_but_does_not_choose(file: Path) -> None:
    with_table = conformer(conv_groups=2, sizes={"small": 0.6}, latency_table=str(file))
    assert with_table.sizes == conformer(conv_groups=2, sizes={"small": 0.6}).sizes
    assert with_table.component_table().criteria == ("params", "flops", "latency")


def test_small_models_carry_neither_table_nor_criterion(file: Path) -> None:
    encoder = conformer(conv_groups=2, sizes={"small": 0.6}, criterion="latency", latency_table=str(file))
    small: TodmConformerEncoder = encoder.extract(encoder.find_subnet("small"))
    assert small.latency is None and small.criterion == "params"
    stock = encoder.stock_conf(encoder.find_subnet("full"))
    for conf in (encoder.extracted_conf(encoder.find_subnet("small")), stock):
        assert conf is not None and not {"criterion", "latency_table", "sizes", "subnet"} & conf.keys()
