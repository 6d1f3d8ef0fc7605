"""Run a search with optuna: it stores the trials, shares them among machines, and picks the parents (NSGA-II).

Import this inside a function: optuna is in the extra ``search``.
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

RECORD = "espnet_todm.search/1"  # attribute of a study: what its trials depend on
# Attributes of a trial. Genes are one attribute and no parameters of optuna's, each of which would be a transaction.
PROPOSAL, RESULT = "proposal", "result"
Evaluate = Callable[[Subnet], Mapping[str, float]]  # the scores of a subnet, by name


class SubnetSampler(NSGAIISampler):
    """optuna's NSGA-II picks each generation's parents; the first generation and all children are the proposer's.

    ``population``: subnets of a generation; None draws at random for ever.
    """

    def __init__(self, proposer: Proposer, population: Optional[int]) -> None:
        super().__init__(population_size=population or 2)
        self.proposer, self.evolves = proposer, population is not None
        self.proposal = Proposal({}, "")  # for the trial that was begun last
        self._sets: dict[int, frozenset[Key]] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Called when a trial is begun: makes its proposal."""
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
        parents = sorted(  # optuna has them in one order when it picks them, and in another ever after
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
    """A search that is stored, so that it goes on where it was stopped and several machines can work on it.

    Args:
        storage: an optuna storage's URL, such as sqlite:///search/study.db.
        name: of the study in it.
        label: its subnets are named <label>_<number of the trial>.
        record: what the trials depend on, JSON-ready; a study made with another is not gone on with.
        objectives: names of scores and costs, all the less the better.
        population: as :class:`SubnetSampler` takes it.

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
        except Exception as error:  # each kind of storage has errors of its own
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
        """All that are complete, in the order of their numbers."""
        return [self._trial(trial) for trial in self._complete()]

    def score_trials(self, trials: int, evaluate: Evaluate) -> None:
        """Go on until there are so many complete trials in all. Each further machine may add one to that.

        What stops it, Ctrl-C too, leaves all complete trials stored and the one in progress out.
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
