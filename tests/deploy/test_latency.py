"""Latency as a criterion: the file, the fit, and sizes on a latency budget. Nothing here asserts a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from espnet_todm.bin.measure_latency import main
from espnet_todm.deploy.latency import _lines, _medians, measure_latency
from espnet_todm.errors import UserError
from espnet_todm.files import write_json
from espnet_todm.latency import LatencyTable, fingerprint, read_latency
from espnet_todm.sizes import uniform_order
from tests.conftest import conformer


def made_up(encoder) -> LatencyTable:
    """A table in which attention heads are dear, whatever their parameters."""
    table = encoder.component_table()
    modules = {f"{la}/{m}": (0.001, 0.01 if m == "self_attn" else 0.002) for la, m in table.module_costs}
    return LatencyTable(fingerprint(table), {}, 10.0, modules, [0.0005] * table.num_layers, 0.02)


@pytest.fixture(scope="module")
def encoder():
    return conformer(conv_norm="layer_norm")


def test_the_fit_recovers_a_line_and_never_goes_below_zero() -> None:
    straight = {(("ffn", (8, 4)), count): 0.5 + 0.25 * count for count in (1, 2, 4)}
    falling = {(("heads", (4, 4)), count): 1.0 - 0.1 * count for count in (1, 4)}
    lines = _lines({**straight, **falling, "front": 9.0, ("subnet", 0): 3.0})
    assert lines["ffn", (8, 4)] == pytest.approx((0.5, 0.25))
    assert lines["heads", (4, 4)][1] == 0.0
    assert len(lines) == 2


def test_medians_leave_the_first_round_out() -> None:
    times = iter([0.0, 100.0, 100.0, 101.0, 101.0, 103.0, 103.0, 104.0])  # rounds of 100, 1, 2 and 1 seconds
    assert _medians({"a": lambda: None}, 3, lambda: next(times)) == {"a": 1.0}


def test_a_measurement_covers_every_module_and_adds_up(encoder) -> None:
    measured = measure_latency(encoder, seconds=0.5, rounds=2)
    timed = measured.applied(encoder.component_table())
    assert measured.encoder == fingerprint(timed)
    order, spent = uniform_order(timed), []
    for count in range(1, len(order) + 1):
        spent.append(timed.cost(order[:count]).latency)
    assert sorted(spent) == spent and spent[0] > 0  # monotone
    parts = timed.rest + sum((c.cost for c in timed.components), start=type(timed.rest)())
    for cost in (*timed.module_costs.values(), *timed.layer_costs.values()):
        parts = parts + cost
    assert parts.latency == pytest.approx(spent[-1])
    assert measured.check[0][0] == 1.0
    assert all(predicted > 0 and taken > 0 for _, predicted, taken in measured.check)


def test_weights_do_not_matter_but_dimensions_do(encoder) -> None:
    table = encoder.component_table()
    assert fingerprint(table) == fingerprint(conformer(conv_norm="layer_norm", dropout_rate=0.3).component_table())
    assert fingerprint(table) != fingerprint(conformer(conv_norm="layer_norm", linear_units=64).component_table())


def test_the_file_round_trips_and_sizes_meet_a_latency_budget(encoder, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    made_up(encoder).write(path)
    assert read_latency(path).rest == 0.02
    options = {"conv_norm": "layer_norm", "latency_table": str(path)}
    by_latency = conformer(**options, criterion="latency", sizes={"small": 0.6})
    table, small = by_latency.component_table(), by_latency.sizes["small"]
    following = next(key for key in uniform_order(table) if key not in small.components)
    full = table.cost(table.full()).latency
    assert table.cost(small).latency <= 0.6 * full < table.cost([*small.components, following]).latency
    by_params = conformer(**options, sizes={"small": 0.6})
    assert by_params.sizes["small"] != small
    assert "latency_table" not in by_latency.extracted_conf(small)
    torch.testing.assert_close(by_latency.extract(small).component_table().cost([]).params, table.rest.params)


def test_what_is_wrong_ends_in_one_line(encoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"latency needs a latency_table.*measure_latency"):
        conformer(criterion="latency")
    with pytest.raises(UserError, match=r"criterion: 'speed'.*params, flops, latency"):
        conformer(criterion="speed")
    path = tmp_path / "latency.json"
    made_up(encoder).write(path)
    with pytest.raises(UserError, match="encoder of other dimensions"):
        conformer(conv_norm="layer_norm", linear_units=64, latency_table=str(path))
    write_json(path, {"format": "something else"})
    with pytest.raises(UserError, match=r"latency.json is no espnet_todm.latency/1"):
        conformer(latency_table=str(path))
    write_json(path, {"format": "espnet_todm.latency/1", "rest": 1.0})
    with pytest.raises(UserError, match="damaged"):
        read_latency(path)
    with pytest.raises(UserError, match="rounds: 0"):
        measure_latency(encoder, rounds=0)


def test_the_command_works_from_a_configuration_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(
        "encoder: todm_conformer\nencoder_conf: {output_size: 16, attention_heads: 2, linear_units: 32, num_blocks: 2,"
        " rel_pos_type: latest, criterion: latency, sizes: {small: 0.5}}\n"
    )
    output = tmp_path / "latency.json"
    main(["--config", str(config), "--output", str(output), "--seconds", "0.5", "--rounds", "1"])
    assert "predictions of whole subnets are off" in capsys.readouterr().out
    assert dataclasses.asdict(read_latency(output))["machine"]["threads"] == 1
