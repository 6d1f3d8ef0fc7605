"""What is read from an experiment folder, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.report.experiment import load_experiment
from espnet_todm.util.files import write_json


def test_everything_measured_is_found_and_nothing_else(scored: Path) -> None:
    experiment = load_experiment(scored)
    assert experiment.tag == "toy" and experiment.splits == ("dev", "test_clean")
    full, small, uncosted = experiment.sizes
    assert [size.name for size in experiment.sizes] == ["full", "small", "uncosted"]
    assert (small.params, small.share_of_params, small.speed["rtf_median"]) == (1_250_000, 0.3125, 0.0123)
    assert full.speed == {} and uncosted.params is None and set(uncosted.scores) == {"dev"}
    assert experiment.training_cost == {}
    assert [(s.split, s.size) for s in experiment.scores()][-2:] == [("test_clean", "full"), ("test_clean", "small")]


def test_largest_first_whatever_the_names(scored: Path) -> None:
    for name, params in (("a", 10), ("b", 3_000_000)):
        write_json(scored / "subnets" / name / "card.json", {"cost": {"params": params}})
    assert [size.name for size in load_experiment(scored).sizes] == ["full", "b", "small", "a", "uncosted"]


def test_missing_or_unscored(unscored: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such experiment folder"):
        load_experiment(unscored / "nowhere")
    with pytest.raises(UserError, match="score the experiment first"):
        load_experiment(unscored / "exp" / "toy")


@pytest.mark.parametrize("card", [{"cost": {"params": "many"}}, {"cost": 5}, [1]])
def test_broken_card_is_named(scored: Path, card: object) -> None:
    write_json(scored / "subnets" / "small" / "card.json", card)
    with pytest.raises(UserError, match=r"small/card\.json: .* must be"):
        load_experiment(scored)
