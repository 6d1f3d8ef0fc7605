"""Search for the best subnets of a trained supernet, and compare with random search and uniform scaling at equal cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Optional

from espnet_todm.components import FULL, Subnet
from espnet_todm.errors import UserError
from espnet_todm.search.evaluate import SCORES, Cached, Evaluator
from espnet_todm.search.evolution import Proposer, Trial, best_under, starting_points
from espnet_todm.search.report import SearchReport
from espnet_todm.search.space import Budgets, SearchSpace, check_budgets, fits, make_space
from espnet_todm.sizes import fit_budget
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import hash_text
from espnet_todm.util.optional import needed
from espnet_todm.util.units import parse_amount

if TYPE_CHECKING:
    from espnet_todm.search.study import Study

SEARCH, RANDOM, STARTED = "search", "random search", "random search with the same starts"
UNIFORM, NAMED = "uniform scaling", "named sizes"
SHARES = (0.4, 0.5, 0.6, 0.8)  # default budgets for comparisons, as shares of the full cost


@dataclass(frozen=True)
class SearchPlan:
    """Options of a search.

    Args:
        objectives: one score ("wer", "cer", "loss") and criteria ("params", "flops", "latency"), all minimised.
        budgets: criterion -> maximum cost of a subnet.
        compare_at: budgets in the first criterion at which methods are compared. Default: SHARES and the budget.
        trials: total number of scored subnets, including those before a search was resumed.
        baseline: number of scored subnets of the random search. None means as many as trials, 0 means no random search.
        granularity: see :func:`espnet_todm.search.space.make_space`.
        population: number of subnets in a generation.
        storage: URL of optuna's storage.
        name: name of the study in the storage.

    Raises:
        UserError: a value is not allowed.
    """

    storage: str
    objectives: Sequence[str] = ("wer", "params")
    budgets: Budgets = field(default_factory=dict)
    compare_at: Sequence[float] = ()
    trials: int = 200
    baseline: Optional[int] = None
    granularity: str = "layer"
    population: int = 24
    seed: int = 0
    name: str = "search"

    def __post_init__(self) -> None:
        scores = [name for name in self.objectives if name in SCORES]
        if len(scores) != 1 or len(self.objectives) < 2 or len(set(self.objectives)) < len(self.objectives):
            raise UserError(
                f"objectives: {' '.join(self.objectives)}: needed are one score ({', '.join(SCORES)}) and one or more of"
                f" params, flops and latency, each once"
            )
        check_number("trials", self.trials, at_least=1, whole=True)
        check_number("baseline", self.baselines, at_least=0, whole=True)
        check_number("population", self.population, at_least=2, whole=True)

    @property
    def score(self) -> str:
        """The objective that is a score."""
        return next(name for name in self.objectives if name in SCORES)

    @property
    def criteria(self) -> list[str]:
        """The objectives that are costs."""
        return [name for name in self.objectives if name not in SCORES]

    @property
    def baselines(self) -> int:
        return self.trials if self.baseline is None else self.baseline


def parse_budgets(texts: Iterable[str]) -> dict[str, float]:
    """["params=1.2M", "latency=0.02"] -> {"params": 1.2e6, "latency": 0.02}. Raises UserError for malformed text."""
    budgets: dict[str, float] = {}
    for text in texts:
        criterion, equals, amount = text.partition("=")
        if not equals or criterion in budgets:
            raise UserError(f"budget: {text!r} must be criterion=amount, such as params=1.2M, each criterion once")
        budgets[criterion] = parse_amount(amount)
    return budgets


class SubnetSearch:
    """A search on a supernet, and the methods for comparison. All of them share one cache of scores.

    Call :meth:`open`, then :meth:`score_trials`. Raises UserError if an objective is unknown or not measured, a budget is
    infeasible, or optuna is not installed.
    """

    def __init__(self, evaluator: Evaluator, plan: SearchPlan) -> None:
        self.evaluator, self.plan = evaluator, plan
        self.evaluate = Cached(evaluator, plan.score)
        self.table = evaluator.model.component_table()
        for criterion in plan.criteria:
            self.table.check(criterion)
        self.space: SearchSpace = make_space(self.table, plan.granularity)
        check_budgets(self.space, plan.budgets)
        encoder = evaluator.supernet.encoder
        self.sizes: Mapping[str, Subnet] = {FULL: encoder.sizes[FULL]} if encoder.pending else encoder.sizes
        self.starts = starting_points(self.table, self.sizes)
        self.compare_at()  # raises errors for infeasible budgets before anything is scored
        needed("optuna", "search")

    def open(self) -> None:
        """Open or create the stored search. Raises UserError if the storage is unusable or has another search."""
        plan = self.plan
        self.search = self._study(plan.name, "trial", self.starts, plan.population)
        self.random = self._study(f"{plan.name}-random", "random", {}, None) if plan.baselines else None
        for trial in [*self.search.trials(), *(self.random.trials() if self.random else [])]:
            self.evaluate.known[trial.subnet.components] = trial.scores

    def score_trials(self) -> None:
        """Run until all trials are complete. Raises KeyboardInterrupt on Ctrl-C; complete trials stay stored."""
        self.search.score_trials(self.plan.trials, self.evaluate)
        if self.random:
            self.random.score_trials(self.plan.baselines, self.evaluate)
        for subnet in [*self.starts.values(), *self._fitted()]:
            if fits(self.table, subnet, self.plan.budgets):
                self.evaluate(subnet)

    def methods(self) -> dict[str, list[Trial]]:
        """Name of each method -> its scored trials so far."""
        found = {SEARCH: self.search.trials()}
        if self.random:
            drawn = self.random.trials()
            starts = [trial for trial in found[SEARCH] if trial.by in self.starts]
            found[RANDOM] = drawn
            found[STARTED] = [*starts, *drawn[: max(0, len(drawn) - len(starts))]]
        scaled = [subnet for name, subnet in self.starts.items() if name.startswith("uniform")]
        found[UNIFORM] = self._scored("uniform", [*scaled, *self._fitted()])
        found[NAMED] = self._scored("configuration", list(self.sizes.values()))
        return {method: [self._named(trial) for trial in trials] for method, trials in found.items()}

    def compare_at(self) -> list[float]:
        """Budgets in the first criterion, ascending. Raises UserError if no subnet of the space is within one of them."""
        criterion = self.plan.criteria[0]
        full = self.table.amount(self.table.full(), criterion)
        limit = self.plan.budgets.get(criterion, full)
        given = self.plan.compare_at or [limit, *(share * full for share in SHARES if share * full < limit)]
        for budget in given:
            check_budgets(self.space, {criterion: budget})
        return sorted(set(given))

    def reference(self) -> dict[str, float]:
        """The worst corner of the hypervolume's box: WER or CER of 100% (loss: log V, that of uniform guessing), and 110% of
        the full supernet's costs."""
        worst = math.log(len(self.evaluator.decoder.tokens)) if self.plan.score == "loss" else 100.0
        full = self.table.full()
        return {
            name: worst if name == self.plan.score else 1.1 * self.table.amount(full, name)
            for name in self.plan.objectives
        }

    def best(self) -> dict[float, dict[str, Trial]]:
        """Budget -> method -> the trial with the best score within the budget."""
        criterion, methods = self.plan.criteria[0], self.methods()
        found = {
            budget: {name: best_under(trials, self.plan.score, criterion, budget) for name, trials in methods.items()}
            for budget in self.compare_at()
        }
        return {
            budget: {name: trial for name, trial in best.items() if trial is not None} for budget, best in found.items()
        }

    def report(self, settings: Mapping[str, Any], others: Mapping[str, Evaluator]) -> SearchReport:
        """Report of the results so far. ``others``: name of a further set -> evaluator that scores each method's best."""
        plan, best = self.plan, self.best()
        tests = {
            (split, budget, method): evaluator.errors(trial.subnet)
            for split, evaluator in others.items()
            for budget, of_budget in best.items()
            for method, trial in of_budget.items()
        }
        told = {
            **settings,
            "granularity": plan.granularity,
            "genes": len(self.space.bounds),
            "population": plan.population,
            "set": f"{self.evaluator.split}, {len(self.evaluator.utterances)} utterances",
        }
        methods, reference = self.methods(), self.reference()
        split = self.evaluator.split
        return SearchReport(told, split, plan.objectives, plan.score, methods, best, reference, tests=tests)

    def _study(self, name: str, label: str, starts: Mapping[str, Subnet], population: Optional[int]) -> Study:
        from espnet_todm.search.study import Study

        plan, evaluator = self.plan, self.evaluator
        record = {
            "checkpoint": evaluator.supernet.source["checkpoint_sha256"],
            "set": evaluator.split,
            "transcripts": hash_text("\n".join(map(" ".join, sorted(evaluator.references.items())))),
            "objectives": list(plan.objectives),
            "budgets": dict(plan.budgets),
            "granularity": plan.granularity,
            "population": population,
            "seed": plan.seed,
        }
        proposer = Proposer(self.space, plan.budgets, plan.seed, starts)
        return Study(plan.storage, name, label, record, plan.objectives, proposer, population)

    def _fitted(self) -> list[Subnet]:
        """Uniform scalings that fill the budgets of the comparison. Budgets without one are left out."""
        criterion, fitted = self.plan.criteria[0], []
        full = self.table.amount(self.table.full(), criterion)
        for budget in self.compare_at():
            try:
                fitted.append(fit_budget(f"uniform_to_{100 * budget / full:.1f}", self.table, criterion, budget))
            except UserError:  # below the smallest scaling, or above the full set
                continue
        return fitted

    def _scored(self, by: str, subnets: Sequence[Subnet]) -> list[Trial]:
        """Trials of the subnets that are scored and within the budgets, without duplicates."""
        trials: dict[Any, Trial] = {}
        for subnet in subnets:
            scores = self.evaluate.known.get(subnet.components)
            if scores is not None and fits(self.table, subnet, self.plan.budgets):
                cost = self.table.cost(subnet)
                costs = {criterion: cost.by(criterion) for criterion in self.table.criteria}
                trials.setdefault(subnet.components, Trial(len(trials), by, subnet, scores, costs))
        return list(trials.values())

    def _named(self, trial: Trial) -> Trial:
        """The trial with the name of the size that has the same components, if there is one."""
        return replace(trial, subnet=self.evaluator.named(trial.subnet))
