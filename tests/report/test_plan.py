"""Plans of comparisons: what they run, and that they run it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from espnet_todm.errors import UserError
from espnet_todm.report.plan import read_plan, train_and_score

BASE = {"encoder_conf": {"sizes": {"small": 0.5}}, "subnet_trainer": "kd", "subnet_trainer_conf": {"kd_weight": 0.5}}
PLAN: dict[str, Any] = {"base": "base.yaml", "methods": {"top-k": {"subnet_trainer": "top_k"}}, "alone": True}
# A recipe of one line: notes how it was called, and fails when it is told to.
RECIPE = '#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>calls\nmkdir -p exp/compare/top_k\n[ ! -f fail ]\n'


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "max_epoch": 3}))
    (tmp_path / "run.sh").write_text(RECIPE)
    (tmp_path / "run.sh").chmod(0o755)
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
    assert "subnet_trainer_conf" not in methods["top-k"].config  # of the trainer that was exchanged
    assert methods["alone small"].config["subnet_trainer_conf"] == {"size": "small"}
    assert methods["alone small"].sizes == ("small",)
    assert all(method.config["max_epoch"] == 3 for method in methods.values())


def test_seeds_repeat_every_method(plan: Path) -> None:
    methods = {method.name: method for method in read_plan(write(plan.parent, seeds=[2, 3]))}
    assert list(methods)[:4] == ["top-k, seed 2", "alone full, seed 2", "alone small, seed 2", "top-k, seed 3"]
    assert methods["alone small, seed 3"].config["seed"] == 3
    assert len({method.slug for method in methods.values()}) == 6


def test_a_method_runs_once_and_goes_on_after_a_failure(plan: Path) -> None:
    folder, method = plan.parent, read_plan(plan)[0]
    (folder / "fail").touch()
    with pytest.raises(UserError, match=r"top-k: the recipe stopped with status 1"):
        train_and_score(method, folder / "run.sh", "compare", [])
    (folder / "fail").unlink()
    for _ in range(2):
        assert train_and_score(method, folder / "run.sh", "compare", []) == folder / "exp" / "compare" / "top_k"
    calls = (folder / "calls").read_text().splitlines()
    assert len(calls) == 2 and calls[0] == calls[1]
    assert "--stage 11 --stop_stage 14 --asr_config exp/compare/top_k.yaml --asr_tag compare/top_k" in calls[0]


def test_an_experiment_of_another_configuration_is_not_taken(plan: Path) -> None:
    folder = plan.parent
    train_and_score(read_plan(plan)[0], folder / "run.sh", "compare", [])
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "max_epoch": 4}))
    with pytest.raises(UserError, match=r"another configuration"):
        train_and_score(read_plan(plan)[0], folder / "run.sh", "compare", [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": None}, ["base", "methods"]),
        ({"bases": 1}, ["bases", "allowed"]),
        ({"base": "none.yaml"}, ["none.yaml", "no such file"]),
        ({"methods": {"top-k": "top_k"}}, ["methods.top-k", "mapping"]),
        ({"methods": {"long": {"max_epoch": 9}}}, ["methods.long", "max_epoch", "same updates"]),
        ({"seeds": []}, ["seeds: []", "whole numbers"]),
        ({"seeds": ["1"]}, ["seeds", "whole numbers"]),
    ],
)
def test_wrong_plans_are_named(plan: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read_plan(write(plan.parent, **changes))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
