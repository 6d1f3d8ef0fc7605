"""Plans of comparisons: which trainings they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.plan import choose, read_plan

BASE = {"encoder_conf": {"sizes": {"small": 0.5}}, "subnet_trainer": "kd", "subnet_trainer_conf": {"kd_weight": 0.5}}
PLAN: dict[str, Any] = {"base": "base.yaml", "methods": {"top-k": {"subnet_trainer": "top_k"}}, "alone": True}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "max_epoch": 3}))
    return write(tmp_path)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**PLAN, **changes}.items() if v is not None}))
    return path


def test_methods_change_one_thing_and_each_size_is_trained_alone(plan: Path) -> None:
    methods = {method.name: method for method in read_plan(plan)}
    assert list(methods) == ["top-k", "alone full", "alone small"]
    assert methods["top-k"].sizes == ("full", "small")
    assert methods["top-k"].config["subnet_trainer"] == "top_k"
    assert methods["top-k"].twins == {"full": "alone full", "small": "alone small"}
    assert "subnet_trainer_conf" not in methods["top-k"].config  # of the trainer that was exchanged
    assert methods["alone small"].config["subnet_trainer_conf"] == {"size": "small"}
    assert methods["alone small"].sizes == ("small",)
    assert all(method.config["max_epoch"] == 3 for method in methods.values())


def test_seeds_repeat_every_method(plan: Path) -> None:
    methods = {method.name: method for method in read_plan(write(plan.parent, seeds=[2, 3]))}
    assert list(methods)[:4] == ["top-k, seed 2", "alone full, seed 2", "alone small, seed 2", "top-k, seed 3"]
    assert methods["alone small, seed 3"].config["seed"] == 3
    assert methods["top-k, seed 3"].label == "top-k" and methods["top-k, seed 3"].seed == 3
    assert len({method.slug for method in methods.values()}) == 6


def test_lengths_stretch_every_method_and_leave_the_first_as_it_is(plan: Path) -> None:
    methods = read_plan(write(plan.parent, seeds=[2], lengths=[1, 4]))
    assert [method.name for method in methods][2:5] == [
        "alone small, seed 2",
        "top-k, 4x, seed 2",
        "alone full, 4x, seed 2",
    ]
    assert [method.config["max_epoch"] for method in methods] == [3, 3, 3, 12, 12, 12]
    assert [method.length for method in methods] == [1, 1, 1, 4, 4, 4]
    assert {method.label for method in methods} == {"top-k", "alone full", "alone small"}


def test_subnets_with_utterances_of_their_own_may_have_larger_batches(plan: Path) -> None:
    """Their twins have the base's batches, so a size and its twin have as many updates and as much speech in each."""
    base = {**BASE, "max_epoch": 3, "batch_type": "numel", "batch_bins": 1000, "num_iters_per_epoch": 10}
    (plan.parent / "base.yaml").write_text(yaml.safe_dump(base))
    split = {"batch_bins": 2000, "subnet_trainer_conf": {"split_batch": True, "kd_weight": 0}}
    methods = {m.name: m for m in read_plan(write(plan.parent, methods={"split": split}, alone="sets"))}
    assert methods["split"].config["batch_bins"] == 2000 and methods["split"].speech == 2
    assert methods["split"].twins == {"full": "alone full", "small": "alone small"}
    assert methods["alone small"].config["batch_bins"] == 1000 and methods["alone small"].speech == 1
    (plan.parent / "base.yaml").write_text(yaml.safe_dump({**base, "num_iters_per_epoch": None}))
    with pytest.raises(UserError, match="changes batch_bins; all methods must make the same updates"):
        read_plan(write(plan.parent, methods={"split": split}))


def test_methods_are_chosen_by_name_or_for_all_seeds(plan: Path) -> None:
    methods = read_plan(write(plan.parent, seeds=[2, 3]))
    assert choose(methods, None) == methods
    assert [m.name for m in choose(methods, ["top-k", "alone full, seed 3"])] == [
        "top-k, seed 2",
        "top-k, seed 3",
        "alone full, seed 3",
    ]
    with pytest.raises(UserError, match=r"--only: 'top' is unknown; allowed: top-k, top-k, seed 2"):
        choose(methods, ["top"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": None}, ["base", "methods"]),
        ({"bases": 1}, ["bases", "allowed"]),
        ({"base": "none.yaml"}, ["none.yaml", "no such file"]),
        ({"methods": {"top-k": "top_k"}}, ["methods.top-k", "mapping"]),
        ({"methods": {"long": {"max_epoch": 9}}}, ["methods.long", "max_epoch", "same updates"]),
        ({"methods": {"large": {"accum_grad": 2}}}, ["methods.large", "accum_grad", "same updates"]),
        ({"methods": {"alone full": {}}}, ["methods.alone full", "choose another"]),
        ({"methods": {"short": {"patience": 1}}}, ["methods.short", "patience", "same updates"]),
        (
            {"methods": {"bare": {"encoder_conf": {"sizes": None}}}},
            ["methods.bare", "encoder_conf.sizes", "small: 0.5"],
        ),
        ({"base": "no_sizes.yaml"}, ["base", "encoder_conf.sizes is None"]),
        ({"methods": {"a, b": {}, "a b": {}}}, ["'a, b' gives the folder 'a_b' as for 'a b'"]),
        ({"methods": {"\u00e4": {}}}, ["gives the folder ''", "letters a to z"]),
        ({"seeds": [1, -1]}, ["'top-k, seed -1'", "as for 'top-k, seed 1'"]),
        ({"seeds": []}, ["seeds: []", "whole numbers"]),
        ({"seeds": ["1"]}, ["seeds", "whole numbers"]),
        ({"seeds": [1, 1]}, ["seeds", "different"]),
        ({"lengths": [0, 1]}, ["lengths", "from 1"]),
        ({"lengths": 2}, ["lengths: 2", "list"]),
        ({"alone": "set"}, ["alone: 'set'", "allowed: False, True, sets, both"]),
    ],
)
def test_wrong_plans_are_named(plan: Path, changes: dict[str, Any], words: list[str]) -> None:
    (plan.parent / "no_sizes.yaml").write_text("max_epoch: 3\n")
    with pytest.raises(UserError) as error:
        read_plan(write(plan.parent, **changes))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
