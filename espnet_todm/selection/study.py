"""Run a search with optuna: it stores the trials, shares them among machines, and picks the parents (NSGA-II).

Import this inside a function: optuna is in the extra ``search``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from espnet_todm.components import Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.selection.search import Parent, Proposal, Proposer, Trial
from espnet_todm.selection.space import SearchSpace

RECORD = "espnet_todm.search/1"  # attribute of a study: what its trials depend on
Evaluate = Callable[[Subnet], Mapping[str, float]]  # the scores of a subnet, by name


class SubnetSampler(NSGAIISampler):
    """optuna's NSGA-II picks each generation's parents; the first generation and all children are the proposer's.

    ``population``: subnets of a generation; None draws at random for ever.
    """

    def __init__(self, proposer: Proposer, population: Optional[int]) -> None:
        super().__init__(population_size=population or 2)
        self.proposer, self.evolves = proposer, population is not None
        self.by = ""  # who proposed the latest
        self._sets: dict[int, frozenset[Key]] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.proposer.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        before = [
            other
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
            if other.number < trial.number
        ]
        known = {self._components(other) for other in before if len(other.params) == len(search_space)}
        proposal = self._propose(study, trial, len(before), known)
        self.by = proposal.by
        return proposal.genes

    def _propose(self, study: optuna.Study, trial: FrozenTrial, index: int, known: set[frozenset[Key]]) -> Proposal:
        if not self.evolves:
            return self.proposer.first(index, known)
        generation = self.get_trial_generation(study, trial)
        parents = [
            Parent(p.number, p.params, tuple(p.values)) for p in self.get_parent_population(study, generation)
        ]
        return self.proposer.child(index, known, parents) if parents else self.proposer.first(index, known)

    def _components(self, trial: FrozenTrial) -> frozenset[Key]:
        if trial.number not in self._sets:
            self._sets[trial.number] = self.proposer.space.subnet(trial.params).components
        return self._sets[trial.number]


class Study:
    """A search that is stored, so that it goes on where it was stopped and several machines can work on it.

    Args:
        storage: an optuna storage's URL, such as sqlite:///search/study.db.
        name: of the study in it.
        record: what the trials depend on, JSON-ready; a study made with another is not gone on with.
        objectives: names of scores and costs, all the less the better.

    Raises:
        UserError: the storage cannot be opened, or has a study of this name with another record.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        record: Mapping[str, Any],
        objectives: Sequence[str],
        proposer: Proposer,
        population: Optional[int],
    ) -> None:
        self.objectives, self.space = tuple(objectives), proposer.space
        self.sampler = SubnetSampler(proposer, population)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                storage=storage,
                study_name=name,
                sampler=self.sampler,
                directions=["minimize"] * len(self.objectives),
                load_if_exists=True,
            )
        except Exception as error:  # each kind of storage has errors of its own
            raise UserError(f"storage: {storage} cannot be opened ({' '.join(str(error).split())[:200]})") from None
        stored = self.study.user_attrs.get(RECORD)
        if stored is None:
            self.study.set_user_attr(RECORD, dict(record))
        elif stored != record:
            key = next(k for k in {**stored, **record} if stored.get(k) != record.get(k))
            raise UserError(
                f"storage: {storage} has a search with {key}: {stored.get(key)!r}, not {record.get(key)!r}; go on with the"
                f" same options, or give another --output or --storage"
            )

    def trials(self) -> list[Trial]:
        """All that are complete, in the order of their numbers."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [self._trial(trial) for trial in complete]

    def run(self, trials: int, evaluate: Evaluate) -> None:
        """Go on until there are so many complete trials in all. Each further machine may add one to that.

        What stops it, Ctrl-C too, leaves all complete trials stored and the one in progress out.
        """
        done = len(self.trials())
        if done:
            logging.info("%s: %d of %d trials are there already", self.study.study_name, done, trials)
        while done < trials:
            trial = self.study.ask(distributions(self.space))
            subnet, started = self.space.subnet(trial.params, f"trial_{trial.number}"), time.perf_counter()
            try:
                scores = dict(evaluate(subnet))
            except BaseException:
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            attributes = {"by": self.sampler.by, "scores": scores, "seconds": time.perf_counter() - started}
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            amounts = {**self.space.costs(trial.params), **scores}
            self.study.tell(trial, [amounts[name] for name in self.objectives])
            done = len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
            shown = ", ".join(f"{name} {amounts[name]:.4g}" for name in self.objectives)
            logging.info("%s %d/%d: %s (%s)", self.study.study_name, done, trials, shown, self.sampler.by)

    def _trial(self, trial: FrozenTrial) -> Trial:
        subnet = self.space.subnet(trial.params, f"trial_{trial.number}")
        attributes = trial.user_attrs
        costs = self.space.costs(trial.params)
        return Trial(trial.number, attributes["by"], subnet, attributes["scores"], costs, attributes["seconds"])


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The genes as optuna's parameters."""
    return {name: IntDistribution(low, high) for name, (low, high) in space.bounds.items()}
