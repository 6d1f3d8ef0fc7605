"""The measurement of latencies. No test looks at a clock: times are made up."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml
from espnet_todm.bin.measure_latency import main
from hypothesis import given
from hypothesis import strategies as st

import espnet_todm
from espnet_todm.bench.components.fit import FITTED, HELD_OUT, checked_subnets
from espnet_todm.bench.components.measure import Calls, build_encoder, fit_line, measure_latency, summary, time_in_turns
from espnet_todm.bench.components.parts import Probe, distinct_shapes
from espnet_todm.bin.extract import main as extract_main
from espnet_todm.card import read_card
from espnet_todm.deploy.extract import load_supernet
from espnet_todm.encoders.latency import LatencyTable, load_latency, save_latency
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.sizes import uniform_order
from espnet_todm.util.files import read_json
from tests.conftest import ENCODERS, conformer, synthetic_latency

espnet_todm.register()

SECONDS = 2.0
times = st.floats(0, 1)


def timer_of(truth: LatencyTable, encoder: SupernetEncoder, noise: float = 0.0) -> Callable[..., dict]:
    """A timer whose machine is exactly as ``truth`` says; it runs every call once to see that it can."""
    table, norm = truth.apply(encoder.component_table()), max(truth.layers.values())

    def seconds(probe: Probe) -> float:
        if probe.part == "whole":
            return table.amount(probe.subnet, "latency") * (1 + noise)
        if probe.part == "block":
            return table.amount(probe.subnet, "latency") - truth.rest
        return {"front": 0.9 * truth.rest, "finalise": 0.1 * truth.rest, "norm": norm}[probe.part]

    def timer(calls: Calls, rounds: int) -> Mapping[Probe, float]:
        for call in calls.values():
            call()
        return {probe: SECONDS * seconds(probe) for probe in calls}

    return timer


@pytest.mark.parametrize("flavour", ENCODERS)
def test_the_fit_recovers_a_machine_that_is_linear(flavour: str) -> None:
    make, options = ENCODERS[flavour]
    encoder = make(**options)
    truth = synthetic_latency(encoder)
    if not hasattr(encoder.encoders[0], "norm_final"):
        truth = synthetic_latency(encoder, norm=0.0)
    found = measure_latency(encoder, SECONDS, timer=timer_of(truth, encoder))
    expected, table = (each.apply(encoder.component_table()) for each in (truth, found))
    for subnet in chain(*checked_subnets(table).values()):
        assert table.amount(subnet, "latency") == pytest.approx(expected.amount(subnet, "latency"))
    assert found.report["held_out"]["largest_error"] == pytest.approx(0, abs=1e-6)
    assert found.report["held_out"]["rank_correlation"] > 0.99  # some cost the same
    assert list(found.report["corrections"].values()) == pytest.approx([1.0] * len(found.report["corrections"]))
    assert found.fingerprint == truth.fingerprint
    for place, line in found.modules.items():
        if sum((c.key.layer, c.key.module) == place for c in table.components) > 1:
            true = truth.modules[place]
            assert (line.fixed, line.per_component) == pytest.approx((true.fixed, true.per_component))


def test_the_error_of_the_fit_is_told() -> None:
    encoder = conformer()
    timer = timer_of(synthetic_latency(encoder), encoder, noise=0.25)
    found = measure_latency(encoder, SECONDS, threads=3, rounds=7, timer=timer)
    assert found.report["held_out_uncorrected"]["largest_error"] == pytest.approx(1 / 1.25 - 1)
    assert found.report["held_out_uncorrected"]["mean_absolute_percentage_error"] == pytest.approx(0.2)
    assert found.report["held_out"]["mean_absolute_percentage_error"] < 0.03
    assert {name: len(entries) for name, entries in found.report["fit"].items()} == {FITTED: 13, HELD_OUT: 12}
    assert not found.report["fit"][FITTED].keys() & found.report["fit"][HELD_OUT].keys()
    machine, report = found.machine, found.report
    assert (machine["threads"], machine["runtime"], machine["torch"]) == (3, "torch", torch.__version__)
    assert (report["rounds"], report["utterance_seconds"], report["clock"]) == (7, SECONDS, "perf_counter")
    assert all(words in summary(found) for words in ("ms per second of speech", "3 thread", "12 subnets held out"))


def test_layers_of_one_shape_are_measured_once() -> None:
    uniform = distinct_shapes(conformer(num_blocks=5))
    assert [shape.layers for shape in uniform] == [(0, 1, 2, 3, 4)] * 4
    assert [shape.counts() for shape in uniform] == [[1, 2, 3, 4], [1, 2, 3, 4], [1], [1, 2, 3, 4]]
    encoder = conformer(sizes={"uneven": {"ffn": [4, 1, 4]}})
    small = encoder.extract(encoder.find_subnet("uneven"))
    assert {shape.layers for shape in distinct_shapes(small) if shape.module == "feed_forward"} == {(0, 2), (1,)}


@given(times, times, st.lists(st.integers(1, 16), min_size=2, max_size=6, unique=True))
def test_a_line_is_found_again(fixed: float, slope: float, kept: list[int]) -> None:
    line = fit_line({count: fixed + slope * count for count in kept})
    assert all(line.fixed + line.per_component * n == pytest.approx(fixed + slope * n, abs=1e-9) for n in kept)


@given(st.dictionaries(st.integers(1, 16), times, min_size=1, max_size=6))
def test_no_line_has_negative_times_and_none_nearby_is_better(points: dict[int, float]) -> None:
    def squares(fixed: float, slope: float) -> float:
        return sum((fixed + slope * count - seconds) ** 2 for count, seconds in points.items())

    line = fit_line(points)
    assert line.fixed >= 0 and line.per_component >= 0
    for step in (-1e-3, 1e-3):
        for fixed, slope in ((line.fixed + step, line.per_component), (line.fixed, line.per_component + step)):
            if fixed >= 0 and slope >= 0 and len(points) > 1:
                assert squares(fixed, slope) >= squares(line.fixed, line.per_component) - 1e-9


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    ticks = iter([0, 90, 90, 190, 0, 1, 1, 3, 3, 6, 6, 10, 10, 12, 12, 19])  # start and end of a and b, round by round
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert time_in_turns(calls, 3, clock=lambda: float(next(ticks))) == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_threads_are_given_back() -> None:
    before, seen = torch.get_num_threads(), []
    encoder = conformer(num_blocks=1)
    timer = timer_of(synthetic_latency(encoder), encoder)

    def watching(calls: Calls, rounds: int) -> Mapping[Probe, float]:
        seen.append(torch.get_num_threads())
        return timer(calls, rounds)

    measure_latency(encoder, SECONDS, threads=2, timer=watching)
    assert (seen, torch.get_num_threads()) == ([2], before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, ["threads", "0", ">= 1"]),
        ({"rounds": 0}, ["rounds", "0", ">= 1"]),
        ({"seconds": 0.03}, ["seconds", "0.03", "too short"]),
        ({"seconds": -1.0}, ["seconds", "-1.0", "too short"]),
        ({"seconds": float("nan")}, ["seconds", "nan", "finite"]),
    ],
)
def test_a_wrong_option_is_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        measure_latency(conformer(num_blocks=1), **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_encoder_is_built_from_a_training_config_alone(experiment: Path) -> None:
    conf = yaml.safe_load((experiment / "config.yaml").read_text())["encoder_conf"]
    config = {"encoder": "todm_conformer", "encoder_conf": {**conf, "criterion": "latency", "latency_table": "gone"}}
    encoder = build_encoder(config)
    assert (encoder.input_size, list(encoder.sizes), encoder.latency) == (80, ["full"], None)
    assert build_encoder({**config, "input_size": 20}).input_size == 20
    assert build_encoder({**config, "input_size": 20}, 40).input_size == 40


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["encoder", "None", "todm_conformer"]),
        ({"encoder": "conformer"}, ["encoder: 'conformer'", "no supernet", "todm_conformer"]),
        ({"encoder": "todm_conformer", "encoder_conf": {"widths": 3}}, ["unknown option 'widths'"]),
    ],
)
def test_a_config_without_a_supernet_is_refused(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build_encoder(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_command_writes_a_table_that_training_reads(experiment: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "latency.json"
    command = ["--config", str(experiment / "config.yaml"), "--output", str(output)]
    main([*command, "--seconds", "1", "--rounds", "1"])
    assert "latency.json: full encoder" in capsys.readouterr().out
    encoder = load_supernet(experiment / "config.yaml", experiment / "model.pth").encoder
    loaded = load_latency(output, encoder, encoder.component_table())
    assert loaded.report == read_json(output)["report"] and loaded.rest > 0
    with pytest.raises(UserError, match=r"--output: .*latency\.json exists"):
        main(command)


def test_extraction_by_latency_and_its_card(layer_norm_experiment: Path, tmp_path: Path, capsys) -> None:
    encoder = load_supernet(layer_norm_experiment / "config.yaml", layer_norm_experiment / "model.pth").encoder
    measured = synthetic_latency(encoder)
    save_latency(tmp_path / "latency.json", measured)
    table = measured.apply(encoder.component_table())
    budget = f"{0.7 * table.amount(table.full(), 'latency'):.6f}"
    source = ["--config", str(layer_norm_experiment / "config.yaml"), "--output", str(tmp_path / "out")]
    source += ["--checkpoint", str(layer_norm_experiment / "model.pth"), "--latency", budget]
    with pytest.raises(UserError, match=r"latency.*bench components"):
        extract_main(source)
    extract_main([*source, "--latency_table", str(tmp_path / "latency.json")])
    card = read_card(tmp_path / "out" / f"latency_{budget}" / "card.json")
    assert 0.6 < card["cost"]["encoder_shares"]["latency"] <= 0.7
    assert card["cost"]["latency_of_encoder"] <= float(budget)
    assert card["supernet"]["latency_machine"] == {"cpu": "made up", "threads": 1}
    assert "ms per second in the encoder, encoder:" in capsys.readouterr().out


def test_a_budget_below_what_always_runs_is_refused_with_the_range(layer_norm_experiment: Path, tmp_path: Path) -> None:
    encoder = load_supernet(layer_norm_experiment / "config.yaml", layer_norm_experiment / "model.pth").encoder
    measured = synthetic_latency(encoder)
    save_latency(tmp_path / "latency.json", measured)
    source = ["--config", str(layer_norm_experiment / "config.yaml"), "--output", str(tmp_path / "out")]
    source += ["--checkpoint", str(layer_norm_experiment / "model.pth")]
    source += ["--latency", f"{measured.rest / 2:.9f}", "--latency_table", str(tmp_path / "latency.json")]
    with pytest.raises(UserError, match="latency") as error:
        extract_main(source)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_real_times_cover_every_module_and_none_is_negative() -> None:
    encoder = conformer()
    table = measure_latency(encoder, seconds=0.5, rounds=2).apply(encoder.component_table())
    amounts = [table.amount(uniform_order(table)[:count], "latency") for count in range(len(table.components) + 1)]
    assert all(more >= less * (1 - 1e-12) for less, more in zip(amounts, amounts[1:])) and amounts[0] > 0


def test_cards_say_nothing_of_what_was_not_measured(experiment: Path, tmp_path: Path) -> None:
    source = ["--config", str(experiment / "config.yaml"), "--checkpoint", str(experiment / "model.pth")]
    extract_main([*source, "--output", str(tmp_path), "--sizes", "small"])
    card = read_card(tmp_path / "small" / "card.json")
    assert not [key for key in card["cost"] if "latency" in key]
    assert set(card["cost"]["encoder_shares"]) == {"params", "flops"} and "latency_machine" not in card["supernet"]


def test_a_table_that_moved_with_its_experiment_is_found(experiment: Path, tmp_path: Path) -> None:
    encoder = load_supernet(experiment / "config.yaml", experiment / "model.pth").encoder
    save_latency(tmp_path / "latency.json", synthetic_latency(encoder))
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["encoder_conf"]["latency_table"] = "gone/latency.json"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_supernet(tmp_path / "config.yaml", experiment / "model.pth").encoder.latency is not None
    (tmp_path / "latency.json").unlink()
    with pytest.raises(UserError, match=r"latency_table names gone/latency\.json"):
        load_supernet(tmp_path / "config.yaml", experiment / "model.pth")
