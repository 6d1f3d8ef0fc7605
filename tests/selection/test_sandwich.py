"""The sandwich rule as a pure function of (seed, step)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import ComponentTable, Subnet
from espnet_todm.errors import UserError
from espnet_todm.selection.sandwich import Sandwich
from espnet_todm.sizes import keep_order, module_sizes, resolve_sizes, round_share
from tests.conftest import conformer
from tests.tiny_training import python

TABLE = conformer(num_blocks=6, linear_units=64, ffn_chunks=8, conv_groups=2).component_table()
SIZES = resolve_sizes({"large": 0.8, "middle": 0.6, "small": 0.4, "tiny": {"depth": 0.3, "ffn": 0.25}}, TABLE)
SPACE = {"depth": [0.3, 1.0], "ffn": [0.25, 1.0], "heads": [0.5, 0.75], "conv": [0, 1]}
few = settings(max_examples=30, deadline=None)
shares = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted)


def sandwich(seed: int = 0, space: Any = None, number: Any = 2, **options: Any) -> Sandwich:
    return Sandwich(TABLE, SIZES, seed, number, space, **options)


def names_of(subnets: list[Subnet]) -> list[str]:
    return [subnet.name for subnet in subnets]


def as_json(subnets: list[Subnet]) -> str:
    return json.dumps([[subnet.name, subnet.to_json()] for subnet in subnets])


@few
@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**30), min_size=2, max_size=5), st.sampled_from([None, SPACE]))
def test_order_of_calls_does_not_matter(seed: int, steps: list[int], space: Any) -> None:
    one, other = sandwich(seed, space), sandwich(seed, space)
    forwards = {step: as_json(one.pick(step)) for step in steps}
    backwards = {step: as_json(other.pick(step)) for step in reversed(steps)}
    assert forwards == backwards


def test_another_process_picks_the_same() -> None:
    program = (
        "from tests.selection.test_sandwich import SPACE, as_json, sandwich\n"
        "for space in (None, SPACE):\n"
        "    for step in (0, 1, 10**6):\n"
        "        print(as_json(sandwich(7, space).pick(step)))\n"
    )
    done = python(["-c", program], PYTHONHASHSEED="123")
    assert done.returncode == 0, done.stderr
    expected = [as_json(sandwich(7, space).pick(step)) for space in (None, SPACE) for step in (0, 1, 10**6)]
    assert done.stdout.splitlines()[-6:] == expected


def test_steps_and_seeds_differ_and_cover_all_sizes() -> None:
    picked = [as_json(sandwich(0, SPACE).pick(step)) for step in range(20)]
    assert len(set(picked)) == 20
    assert picked != [as_json(sandwich(1, SPACE).pick(step)) for step in range(20)]
    names = {subnet.name for step in range(50) for subnet in sandwich(number=1).pick(step)}
    assert names == SIZES.keys()


@few
@given(st.integers(0, 10**6), st.integers(0, 8), st.sampled_from([None, SPACE]))
def test_max_first_min_last(step: int, number: int, space: Any) -> None:
    picked = sandwich(space=space, number=number).pick(step)
    assert picked[0] == TABLE.full()
    assert len(picked) == 2 + (number if space else min(number, 3))
    if space is None:
        assert picked[-1] == SIZES["tiny"]
        assert len({subnet.name for subnet in picked}) == len(picked)  # random sizes are drawn without repetition
    cheapest = TABLE.cost(picked[-1]).params
    assert all(cheapest <= TABLE.cost(subnet).params for subnet in picked)
    assert all(picked[-1].components <= subnet.components for subnet in picked) or space is None


@few
@given(shares, shares, shares, st.sampled_from(["even", "last", "first"]), st.booleans(), st.integers(0, 1000))
def test_every_dimension_stays_in_its_range(
    depth: list[float], ffn: list[float], heads: list[float], drop: str, per_layer: bool, step: int
) -> None:
    space = {"depth": depth, "ffn": ffn, "heads": heads, "drop": drop, "per_layer": per_layer}
    chosen = sandwich(step, space, 3)
    kinds = {(c.key.layer, c.key.module): c.kind for c in TABLE.components}
    ranges = {"ffn": ffn, "heads": heads, "conv": (1.0, 1.0)}
    for subnet in chosen.pick(step)[1:]:
        kept_layers = len(subnet.layers)
        assert round_share(depth[0], TABLE.num_layers) <= kept_layers <= round_share(depth[1], TABLE.num_layers)
        assert set(subnet.layers) == set(keep_order(TABLE.num_layers, drop)[:kept_layers])
        for (layer, module), total in module_sizes(TABLE).items():
            if layer in subnet.layers:
                low, high = (round_share(share, total) for share in ranges[kinds[layer, module]])
                kept = subnet.layers[layer].get(module, ())
                assert low <= len(kept) <= high and kept == tuple(range(len(kept)))
    lowest = chosen.pick(step)[-1]
    assert len(lowest.layers) == round_share(depth[0], TABLE.num_layers)


def widths(subnet: Subnet) -> list[dict[str, int]]:
    return [{module: len(kept) for module, kept in modules.items()} for modules in subnet.layers.values()]


def test_per_layer_decides_whether_layers_draw_their_own_widths() -> None:
    def uneven(per_layer: bool) -> int:
        chosen = sandwich(0, {"ffn": [0.1, 1.0], "heads": [0.25, 1.0], "per_layer": per_layer}, 1)
        drawn = [widths(chosen.pick(step)[1]) for step in range(20)]
        return sum(layers[0] != layer for layers in drawn for layer in layers)

    assert uneven(False) == 0
    assert uneven(True) > 50


def test_what_a_space_does_not_name_stays_whole() -> None:
    for subnet in sandwich(0, {"depth": [0.5, 0.5]}).pick(3)[1:]:
        assert all(modules == widths(TABLE.full())[0] for modules in widths(subnet))


def test_all_trains_exactly_the_list() -> None:
    every = sandwich(number="all")
    for step in range(5):
        picked = names_of(every.pick(step))
        assert sorted(picked) == sorted(SIZES) and (picked[0], picked[-1]) == ("full", "tiny")
    assert sorted(names_of(every.in_every_step())) == sorted(SIZES)
    assert names_of(sandwich(number=1).in_every_step()) == ["full", "tiny"]
    assert names_of(sandwich(space=SPACE).in_every_step()) == ["full", "min"]


def test_sizes_are_drawn_with_the_probabilities_of_the_configuration() -> None:
    drawing = sandwich(number=1, size_sampling={"large": 6, "middle": 3})
    drawn = [drawing.pick(step)[1].name for step in range(1000)]
    for name, share in (("large", 0.6), ("middle", 0.3), ("small", 0.1)):
        assert drawn.count(name) / 1000 == pytest.approx(share, abs=0.05)
    assert drawn[:50] == [drawing.pick(step)[1].name for step in range(50)]
    two = sandwich(number=2, size_sampling={"large": 100})
    assert all(len(set(names_of(two.pick(step)))) == 4 for step in range(50))


def test_sizes_join_during_the_run() -> None:
    joining = sandwich(number=1, join={"large": 0.1, "middle": 20, "small": 0.3, "tiny": 0.4})
    for step, names in ((0, ["full"]), (9, ["full"]), (10, ["full", "large"]), (20, ["full", "large", "middle"])):
        assert names_of(joining.pick(step, 100)) == names
    drawn = {tuple(names_of(joining.pick(step, 100))) for step in range(40, 100)}
    assert drawn == {("full", name, "tiny") for name in ("large", "middle", "small")}
    assert names_of(joining.in_every_step()) == ["full"]
    all_of_them = sandwich(number="all", join={"tiny": 50})
    assert sorted(names_of(all_of_them.pick(49))) == ["full", "large", "middle", "small"]
    assert names_of(all_of_them.pick(50))[-1] == "tiny"


def test_a_share_needs_the_length_of_the_run_and_a_step_must_be_in_it() -> None:
    with pytest.raises(UserError, match="join: the length of the run is not known beforehand; give step numbers"):
        sandwich(join={"tiny": 0.4}).pick(0)
    with pytest.raises(UserError, match=r"join\.tiny: 40 is not before the end of the run of 40 steps"):
        sandwich(join={"tiny": 40}).pick(0, 40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random_subnets": "most"}, ["random_subnets", "most", "0 to 8, or all"]),
        ({"random_subnets": "all", "search_space": SPACE}, ["random_subnets", "all", "search_space"]),
        ({"size_sampling": {"huge": 1}}, ["size_sampling", "'huge'", "small, middle, large"]),
        ({"size_sampling": {"full": 1}}, ["size_sampling", "'full'", "drawn", "small, middle, large"]),
        ({"size_sampling": {"large": 0}}, ["size_sampling.large: 0", "> 0"]),
        ({"size_sampling": ["large"]}, ["size_sampling", "large", "small, middle, large"]),
        ({"size_sampling": {"large": 2}, "random_subnets": "all"}, ["size_sampling", "no size is drawn"]),
        ({"size_sampling": {"large": 2}, "search_space": SPACE}, ["size_sampling", "no size is drawn"]),
        ({"join": {"huge": 0.5}}, ["join", "'huge'", "tiny, small, middle, large"]),
        ({"join": {"full": 0.5}}, ["join", "'full'", "tiny, small, middle, large"]),
        ({"join": {"tiny": -1}}, ["join.tiny: -1", ">= 0"]),
        ({"join": {"tiny": 1.5}}, ["join.tiny: 1.5", "share", "whole number of steps"]),
        ({"join": {"min": 0.5}, "search_space": SPACE}, ["join", "search_space", "warmup_steps"]),
        ({"random_subnets": -1}, ["random_subnets", "-1", "0 to 8"]),
        ({"random_subnets": 9}, ["random_subnets", "9", "0 to 8"]),
        ({"random_subnets": 1.0}, ["random_subnets", "1.0", "whole"]),
        ({"random_subnets": True}, ["random_subnets", "True", "whole"]),
        ({"search_space": {"width": [0.5, 1]}}, ["search_space", "width", "depth", "ffn", "heads", "conv"]),
        ({"search_space": ["depth"]}, ["search_space", "depth", "mapping"]),
        ({"search_space": {"ffn": 0.5}}, ["search_space.ffn", "0.5", "[low, high]"]),
        ({"search_space": {"ffn": [0.5]}}, ["search_space.ffn", "[0.5]"]),
        ({"search_space": {"ffn": [0.8, 0.5]}}, ["search_space.ffn", "[0.8, 0.5]"]),
        ({"search_space": {"ffn": [0.5, 1.5]}}, ["search_space.ffn", "1.5"]),
        ({"search_space": {"ffn": ["0.5", 1]}}, ["search_space.ffn", "'0.5'"]),
        ({"search_space": {"ffn": [False, True]}}, ["search_space.ffn", "False"]),
        ({"search_space": {"ffn": [float("nan"), 1]}}, ["search_space.ffn", "nan"]),
        ({"search_space": {"depth": [0, 1]}}, ["search_space.depth", "above 0"]),
        ({"search_space": {"per_layer": 1}}, ["search_space.per_layer", "1", "true or false"]),
        ({"search_space": {"drop": "middle"}}, ["drop", "middle", "even, last, first"]),
        ({"search_space": {"ffn": [0, 1], "heads": [0, 1], "conv": [0, 1]}}, ["search_space", "no component"]),
        ({"sizes": {"full": TABLE.full()}}, ["sizes", "below full", "search_space"]),
    ],
)
def test_bad_input_ends_in_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Sandwich(**{"table": TABLE, "sizes": SIZES, **options})
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_table_without_a_kind_does_not_offer_it() -> None:
    table: ComponentTable = conformer(use_cnn_module=False).component_table()
    with pytest.raises(UserError, match=r"unknown key 'conv'; allowed: depth, drop, per_layer, ffn, heads"):
        Sandwich(table, {}, search_space={"conv": [0.5, 1]})
