"""Run a search with optuna. Optuna stores the trials, shares them between machines, and selects the parents (NSGA-II).

Import this module inside a function, since optuna is in the extra ``search``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import optuna
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from espnet_todm.components import Key, Subnet
from espnet_todm.errors import UserError, one_line
from espnet_todm.search.evolution import Parent, Proposal, Proposer, Trial
from espnet_todm.util.units import format_amount

RECORD = "espnet_todm.search/1"  # attribute of a study: the settings that its trials depend on
# Attributes of a trial. All genes are in one attribute, since each optuna parameter would need its own transaction.
PROPOSAL, RESULT = "proposal", "result"
Evaluate = Callable[[Subnet], Mapping[str, float]]  # subnet -> its scores by name


class SubnetSampler(NSGAIISampler):
    """Optuna's NSGA-II selects the parents of each generation. The proposer makes the first generation and all children.

    ``population``: number of subnets in a generation. None means random search.
    """

    def __init__(self, proposer: Proposer, population: Optional[int]) -> None:
        super().__init__(population_size=population or 2)
        self.proposer, self.evolves = proposer, population is not None
        self.proposal = Proposal({}, "")  # proposal of the latest trial
        self._sets: dict[int, frozenset[Key]] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Called by optuna at the start of a trial. It makes the trial's proposal."""
        super().before_trial(study, trial)
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        before = [
            other
            for other in study.get_trials(deepcopy=False, states=states)
            if other.number < trial.number and PROPOSAL in other.user_attrs
        ]
        self.proposal = self._propose(study, trial, len(before), {self._components(other) for other in before})

    def _propose(self, study: optuna.Study, trial: FrozenTrial, index: int, known: set[frozenset[Key]]) -> Proposal:
        if not self.evolves:
            return self.proposer.first(index, known)
        generation = self.get_trial_generation(study, trial)
        parents = sorted(  # optuna's order differs between the first call and later ones
            (
                Parent(parent.number, parent.user_attrs[PROPOSAL]["genes"], tuple(parent.values))
                for parent in self.get_parent_population(study, generation)
            ),
            key=lambda parent: parent.number,
        )
        return self.proposer.child(index, known, parents) if parents else self.proposer.first(index, known)

    def _components(self, trial: FrozenTrial) -> frozenset[Key]:
        if trial.number not in self._sets:
            self._sets[trial.number] = self.proposer.space.subnet(trial.user_attrs[PROPOSAL]["genes"]).components
        return self._sets[trial.number]


class Study:
    """A stored search. It can be resumed, and several machines can share it.

    Args:
        storage: URL of an optuna storage, such as sqlite:///search/study.db.
        name: name of the study in the storage.
        label: prefix of subnet names, which are <label>_<number of the trial>.
        record: settings that the trials depend on, JSON-serialisable. A study with another record is not resumed.
        objectives: names of scores and costs, all minimised.
        population: see :class:`SubnetSampler`.

    Raises:
        UserError: the storage cannot be opened, or has a study of this name with another record.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        label: str,
        record: Mapping[str, Any],
        objectives: Sequence[str],
        proposer: Proposer,
        population: Optional[int],
    ) -> None:
        self.label, self.objectives, self.space = label, tuple(objectives), proposer.space
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
        except Exception as error:  # each kind of storage has its own exceptions
            raise UserError(f"storage: {storage} cannot be opened ({one_line(error)})") from None
        stored = self.study.user_attrs.get(RECORD)
        if stored is None:
            self.study.set_user_attr(RECORD, dict(record))
        elif stored != record:
            key = next(k for k in {**stored, **record} if stored.get(k) != record.get(k))
            raise UserError(
                f"storage: {storage} has a search with {key}: {stored.get(key)!r}, not {record.get(key)!r}; go on with the"
                f" same options, or give another --output, --storage or --name"
            )

    def trials(self) -> list[Trial]:
        """All complete trials, in the order of their numbers."""
        return [self._trial(trial) for trial in self._complete()]

    def score_trials(self, trials: int, evaluate: Evaluate) -> None:
        """Run until the study has ``trials`` complete trials. Each additional machine may add one more.

        After an error or Ctrl-C, all complete trials stay stored. The trial in progress is marked as failed.
        """
        done = len(self._complete())
        if done:
            logging.info("%s: %d of %d trials are there already", self.study.study_name, done, trials)
        while done < trials:
            trial = self.study.ask()
            genes, by = self.sampler.proposal
            started = time.perf_counter()
            try:
                trial.set_user_attr(PROPOSAL, {"genes": genes, "by": by})
                scores = dict(evaluate(self.space.subnet(genes, f"{self.label}_{trial.number}")))
                trial.set_user_attr(RESULT, {"scores": scores, "seconds": time.perf_counter() - started})
            except BaseException:
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            amounts = {**self.space.costs(genes), **scores}
            self.study.tell(trial, [amounts[name] for name in self.objectives])
            done = len(self._complete())
            shown = ", ".join(f"{name} {format_amount(amounts[name])}" for name in self.objectives)
            logging.info("%s %d/%d: %s (%s)", self.study.study_name, done, trials, shown, by)

    def _complete(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _trial(self, trial: FrozenTrial) -> Trial:
        proposal, result = trial.user_attrs[PROPOSAL], trial.user_attrs[RESULT]
        subnet = self.space.subnet(proposal["genes"], f"{self.label}_{trial.number}")
        costs = self.space.costs(proposal["genes"])
        return Trial(trial.number, proposal["by"], subnet, result["scores"], costs, result["seconds"])
