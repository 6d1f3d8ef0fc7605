"""Searching: proposals, Pareto sets, hypervolumes, and studies that stop and go on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.search.evolution import (
    Parent,
    Proposer,
    Trial,
    best_under,
    dominates,
    hypervolume,
    pareto_front,
    starting_points,
)
from espnet_todm.search.space import GRANULARITIES
from espnet_todm.sizes import resolve_size
from tests.search.test_space import seeds, space, table

FULL = table().amount(table().full(), "params")
BUDGETS = {"params": 0.7 * FULL}
points = st.lists(st.tuples(*[st.integers(1, 9)] * 3), max_size=12)


def proposer(granularity: str = "layer", seed: int = 0) -> Proposer:
    sizes = {"small": resolve_size("small", {"depth": 0.67, "ffn": 0.5}, table()), "full": table().full()}
    return Proposer(space(granularity), BUDGETS, seed, starting_points(table(), sizes))


def trials_of(values: list[tuple[int, ...]]) -> list[Trial]:
    return [
        Trial(n, "", Subnet(str(n), frozenset()), {"wer": w}, {"params": p, "flops": f})
        for n, (w, p, f) in enumerate(values)
    ]


@settings(max_examples=40)
@given(st.sampled_from(GRANULARITIES), seeds, st.integers(0, 500))
def test_every_proposal_is_feasible_and_a_function_of_its_seed(granularity: str, seed: int, index: int) -> None:
    one, again = proposer(granularity, seed), proposer(granularity, seed)
    rng = random.Random(index)
    parents = [
        Parent(n, one.space.repair(one.space.draw(rng), BUDGETS, rng), (rng.random(), rng.random())) for n in range(4)
    ]
    for propose in (lambda p: p.first(index, ()), lambda p: p.child(index, (), parents)):
        proposal = propose(one)
        assert one.space.fits(proposal.genes, BUDGETS) and proposal == propose(again)
        assert all(low <= proposal.genes[name] <= high for name, (low, high) in one.space.bounds.items())


def test_starting_points_come_first_and_only_if_they_are_within_the_budget() -> None:
    of = proposer()
    names = [start.by for start in of.starts]
    assert names[0] == "size small" and "size full" not in names and "uniform 1" not in names and len(names) > 2
    assert [of.first(n, ()).by for n in range(len(names) + 1)] == [*names, "random"]
    sets = {of.space.subnet(start.genes).components for start in of.starts}
    assert len(sets) == len(names)


def test_what_is_known_is_not_proposed_again_and_a_small_space_still_ends() -> None:
    of, known = proposer("uniform"), set()
    for index in range(len(of.starts), 40):
        components = of.space.subnet(of.first(index, known).genes).components
        assert components not in known
        known.add(components)
    everything = {of.space.subnet(of.first(index, ()).genes).components for index in range(3000)}
    assert of.space.subnet(of.first(50, everything).genes).components in everything


@given(points)
def test_nothing_in_a_pareto_front_is_dominated_and_all_else_is_covered(values: list[tuple[int, ...]]) -> None:
    trials, objectives = trials_of(values), ["wer", "params", "flops"]
    front = pareto_front(trials, objectives)
    kept = [trial.values(objectives) for trial in front]
    assert len(set(kept)) == len(kept)
    assert not any(dominates(one, other) for one in kept for other in kept)
    assert all(v in kept or any(dominates(one, v) for one in kept) for v in values)


@given(points)
def test_the_hypervolume_is_the_share_of_cells_that_are_dominated(values: list[tuple[int, ...]]) -> None:
    axis = np.arange(8) + 0.5  # centres of the cells of a box of 8 a side
    cells = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    dominated = np.zeros(len(cells), dtype=bool)
    for value in values:
        dominated |= (cells > np.array(value)).all(1)
    assert hypervolume(values, (8, 8, 8)) == pytest.approx(dominated.mean())


def test_the_best_under_a_budget_is_the_cheapest_of_the_best() -> None:
    trials = trials_of([(5, 9, 1), (7, 4, 1), (7, 3, 1), (9, 1, 1)])
    assert best_under(trials, "wer", "params", 4) == trials[2]
    assert best_under(trials, "wer", "params", 100) == trials[0]
    assert best_under(trials, "wer", "params", 0.5) is None


class Counted:
    """A made-up error rate that falls with the parameters, and rises with every missing convolution."""

    def __init__(self, stop_at: Optional[int] = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, subnet: Subnet) -> Mapping[str, float]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        lost = sum(key.module == "conv_module" for key in table().full().components - subnet.components)
        missing = 1 - table().amount(subnet, "params") / FULL
        return {"wer": 5 + 40 * missing**2 + 20 * lost}


def study(folder: Path, seed: int = 0, population: Optional[int] = 6, **record: Any) -> Any:
    pytest.importorskip("optuna")
    from espnet_todm.search.study import Study

    arguments = (f"sqlite:///{folder}/study.db", "search", "trial", {"seed": seed, **record}, ["wer", "params"])
    return Study(*arguments, proposer(seed=seed), population)


def outcome(of: Any) -> list[tuple[Any, ...]]:
    """All of the trials but their numbers: what was stopped keeps its own."""
    return [(t.subnet.components, t.by.rstrip("and 0123456789"), t.scores, t.costs) for t in of.trials()]


def test_a_seeded_search_repeats_and_a_stopped_one_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = study(tmp_path)
    whole.score_trials(24, Counted())
    assert len(whole.trials()) == 24 and all(trial.costs["params"] <= BUDGETS["params"] for trial in whole.trials())
    assert len({trial.subnet.components for trial in whole.trials()}) == 24
    assert any(trial.by.startswith("trials ") for trial in whole.trials())

    (tmp_path / "stopped").mkdir()
    first = study(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        first.score_trials(24, Counted(stop_at=15))
    assert outcome(first) == outcome(whole)[:15]
    again, counted = study(tmp_path / "stopped"), Counted()
    again.score_trials(24, counted)
    assert outcome(again) == outcome(whole) and counted.calls == 9
    again.score_trials(24, counted)
    assert counted.calls == 9  # nothing is left to do
    again.score_trials(25, counted)
    assert len(again.trials()) == 25


def test_two_at_once_share_a_study(tmp_path: Path) -> None:
    one, other = study(tmp_path), study(tmp_path)
    for done in range(2, 21, 2):
        one.score_trials(done - 1, Counted())
        other.score_trials(done, Counted())
    assert len({trial.subnet.components for trial in one.trials()}) == 20
    assert outcome(one) == outcome(other)


def test_a_search_beats_random_draws_where_there_is_something_to_find(tmp_path: Path) -> None:
    found = {}
    for name, population in (("search", 8), ("random", None)):
        (tmp_path / name).mkdir()
        run = study(tmp_path / name, population=population)
        run.sampler.proposer.starts = []
        run.score_trials(100, Counted())
        found[name] = hypervolume((t.values(["wer", "params"]) for t in run.trials()), (100, FULL))
    assert found["search"] > 1.05 * found["random"]


def test_a_study_of_other_options_is_not_gone_on_with(tmp_path: Path) -> None:
    study(tmp_path, seed=0)
    with pytest.raises(UserError, match="has a search with seed: 0, not 1"):
        study(tmp_path, seed=1)
    with pytest.raises(UserError, match="cannot be opened"):
        study(tmp_path / "missing")
