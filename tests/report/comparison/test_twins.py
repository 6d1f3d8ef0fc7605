"""Twins: the same components trained alone, each set once."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from espnet_todm.components import Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.report.comparison.twins import (
    card_of,
    check_twin,
    chooses_sizes,
    kept_by_card,
    learned_config,
    plan_twins,
)
from espnet_todm.trainers.selection_log import SelectionLog
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.files import read_json, write_json
from tests.conftest import conformer
from tests.tiny_model import tiny_model

BASE: dict[str, Any] = {
    "encoder_conf": {"num_blocks": 3, "sizes": {"medium": 0.7, "small": 0.5}},
    "model_conf": {"ctc_weight": 1.0},
    "subnet_trainer": "kd",
    "subnet_trainer_conf": {"kd_weight": 0.5},
}
ORTHO = {**BASE, "subnet_trainer": "ortho_softmax", "subnet_trainer_conf": {}}


def with_encoder(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**config, "encoder_conf": {**config["encoder_conf"], **options}}


def test_the_sizes_of_a_configuration_have_the_twins_of_the_base() -> None:
    methods = {"kd": BASE, "plain": {**BASE, "subnet_trainer_conf": {"kd_weight": 0}}}
    twins = plan_twins(methods, BASE, "sets")
    names = {"full": "alone full", "medium": "alone medium", "small": "alone small"}
    assert twins.of == {"kd": names, "plain": names}
    assert [plan.name for plan in twins.plans] == list(names.values())
    assert twins.plans == plan_twins(methods, BASE, True).plans


def test_what_changes_a_model_alone_gives_it_another_twin() -> None:
    methods = {
        "heads": {**BASE, "model_conf": {"ctc_weight": 1.0, "output_layers": "per_size"}},  # of no effect on one size
        "own": with_encoder(BASE, own_affine=True),
        "smaller": with_encoder(BASE, sizes={"medium": 0.7, "small": 0.4}),
        "flops": with_encoder(BASE, criterion="flops"),  # another meaning of the shares, but not of full
        "dropout": with_encoder(BASE, dropout_rate=0.3),
        "dropout too": {**with_encoder(BASE, dropout_rate=0.3), "subnet_trainer": "uniform"},
    }
    twins = plan_twins(methods, BASE, "sets")
    assert twins.of["heads"] == twins.of["own"] == {size: f"alone {size}" for size in ("full", "medium", "small")}
    assert twins.of["smaller"]["medium"] == "alone medium"
    assert twins.of["smaller"]["small"] == "alone small of smaller"
    assert twins.of["flops"] == {
        "full": "alone full",
        "medium": "alone medium of flops",
        "small": "alone small of flops",
    }
    assert set(twins.of["dropout"].values()) == {f"alone {size} of dropout" for size in ("full", "medium", "small")}
    assert twins.of["dropout too"] == twins.of["dropout"]
    plan = next(plan for plan in twins.plans if plan.name == "alone small of dropout")
    assert plan.config["encoder_conf"]["dropout_rate"] == 0.3 and not plan.learned_by
    assert plan.config["subnet_trainer_conf"] == {"size": "small"}


def test_a_size_alone_is_trained_without_what_only_matters_for_several() -> None:
    of_several = {"output_layers": "per_size", "distil_attention": True}
    config = {**with_encoder(ORTHO, own_affine=True, num_blocks=2), "model_conf": of_several}
    twin = next(plan for plan in plan_twins({"ortho": config}, BASE, "sets").plans if plan.learned_by)
    assert twin.config["model_conf"] == {} and "own_affine" not in twin.config["encoder_conf"]
    assert twin.config["encoder_conf"]["num_blocks"] == 2


def test_a_section_of_such_options_alone_gives_no_twin_of_its_own() -> None:
    base = {key: value for key, value in BASE.items() if key != "model_conf"}
    twins = plan_twins({"plain": base, "heads": {**base, "model_conf": {"output_layers": "per_size"}}}, base, "sets")
    assert twins.of["heads"] == twins.of["plain"]


def test_learned_sizes_have_twins_of_their_own_but_for_the_full_one() -> None:
    twins = plan_twins({"ortho": ORTHO, "alone already": {**BASE, "subnet_trainer": "single"}}, BASE, "both")
    assert twins.of == {
        "ortho": {"full": "alone full", "medium": "alone medium of ortho", "small": "alone small of ortho"},
        "alone already": {},
    }
    assert [plan.name for plan in twins.plans] == [
        "alone full",
        "alone medium",
        "alone small",
        "alone medium of ortho",
        "alone small of ortho",
    ]
    assert twins.plans[-1].learned_by == "ortho" and twins.plans[-1].compared_with == "alone small"
    assert [plan.name for plan in plan_twins({"ortho": ORTHO}, BASE, "sets").plans] == [
        "alone full",
        "alone medium of ortho",
        "alone small of ortho",
    ]
    assert plan_twins({"ortho": ORTHO}, BASE, False) == ({"ortho": {}}, [])


def test_the_best_model_is_by_errors_with_ctc_alone_and_else_by_the_loss() -> None:
    assert plan_twins({}, BASE, True).plans[2].config["best_model_criterion"] == [["valid", "cer_ctc_small", "min"]]
    transducer = {**BASE, "model_conf": {"ctc_weight": 0.2}}
    found = plan_twins({}, transducer, True).plans[2].config["best_model_criterion"]
    assert found == [["valid", "loss_small", "min"]]


def test_which_trainers_choose_the_components() -> None:
    assert chooses_sizes(ORTHO) and chooses_sizes({**BASE, "subnet_trainer": "two_stage"})
    assert not chooses_sizes(BASE) and not chooses_sizes({**BASE, "subnet_trainer": "aux_loss"})
    uniform = {**BASE, "subnet_trainer": "uniform"}
    assert not chooses_sizes(uniform) and chooses_sizes(with_encoder(uniform, share_shape="ffn_first"))
    assert chooses_sizes({**BASE, "subnet_trainer": "uniform", "subnet_trainer_conf": {"granularity": "layer"}})


@pytest.fixture
def learned(tmp_path: Path) -> tuple[Any, Path]:
    """A model whose trainer has chosen and sorted components, and the card of its smallest size."""
    model = tiny_model(sizes={"small": 0.5, "middle": 0.8}).train()
    model.subnet_trainer = TwoStageTrainer(model, selection="random_nested", seed=3)
    model.subnet_trainer.decide(model, 0)
    SelectionLog(tmp_path).write_cards(model, model.subnet_trainer.switch.chosen)
    return model, card_of(tmp_path, "small")


def test_the_card_of_a_sorted_encoder_means_the_same_widths_in_a_fresh_one(learned: tuple[Any, Path]) -> None:
    model, card = learned
    small, table = model.encoder.sizes["small"], model.encoder.component_table()
    kept = kept_by_card("small", card, table)
    config = learned_config(with_encoder(ORTHO, criterion="flops"), "small", kept)
    sizes = config["encoder_conf"]["sizes"]
    assert list(sizes) == ["small"] and "criterion" not in config["encoder_conf"]
    fresh = tiny_model(sizes=sizes)
    twin = SingleTrainer(fresh, size="small").subnet
    costs = [astuple(of.component_table().cost(subnet)) for of, subnet in ((fresh, twin), (model, small))]
    assert costs[0] == pytest.approx(costs[1], rel=1e-12)  # sums over sets, in any order
    widths = {place: {m: len(kept) for m, kept in modules.items()} for place, modules in small.layers.items()}
    assert {place: {m: len(kept) for m, kept in modules.items()} for place, modules in twin.layers.items()} == widths
    states = [encoder.extracted_state(subnet) for encoder, subnet in ((fresh.encoder, twin), (model.encoder, small))]
    assert [{n: t.shape for n, t in state.items()} for state in states[:1]] == [
        {n: t.shape for n, t in state.items()} for state in states[1:]
    ]


def test_a_card_of_another_encoder_is_refused(learned: tuple[Any, Path], tmp_path: Path) -> None:
    _, card = learned
    with pytest.raises(UserError, match=r"small\.json: is the card of another encoder: .*layer") as error:
        kept_by_card("small", card, conformer(num_blocks=1, sizes={}).component_table())
    assert "\n" not in str(error.value)
    other = tiny_model(supernet=conformer(num_blocks=4, linear_units=64, conv_norm="layer_norm"))
    with pytest.raises(UserError, match=r"size: .*small\.json is the card of another encoder: .* params there and"):
        SingleTrainer(other, size=str(card))
    fewer = {**read_json(card), "cost": {}, "name": "mine"}  # an older card without costs is taken
    write_json(tmp_path / "older.json", fewer)
    assert SingleTrainer(other, size=str(tmp_path / "older.json")).subnet.components


def test_twins_of_other_costs_are_refused() -> None:
    check_twin("small", "ortho", {"parameters": 1000.0, "FLOPs": None}, "alone", {"parameters": 1019.0, "FLOPs": 3.0})
    with pytest.raises(UserError, match=r"alone small: has 1021 parameters, but small of ortho has 1000; .* 2%"):
        check_twin("small", "ortho", {"parameters": 1000.0}, "alone small", {"parameters": 1021.0})


def test_sets_that_are_not_a_prefix_keep_their_numbers(tmp_path: Path) -> None:
    model = tiny_model()
    subnet = Subnet("odd", frozenset({Key(2, "self_attn", 1), Key(0, "feed_forward", 1), Key(0, "feed_forward", 3)}))
    SelectionLog(tmp_path).write_cards(model, {"odd": subnet})
    sizes = kept_by_card("odd", card_of(tmp_path, "odd"), model.encoder.component_table())
    assert sizes["feed_forward"] == [2, 0, 0] and sizes["self_attn"] == [0, 0, 1]
    assert not any(sizes["conv_module"])
