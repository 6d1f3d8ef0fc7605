"""Results of a comparison, averaged over seeds: error rates, costs, and differences between sizes and their twins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Optional

import numpy as np

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.trained import Trained
from espnet_todm.report.comparison.twins import check_twin
from espnet_todm.report.experiment import SizeResult
from espnet_todm.scoring.scores import Score
from espnet_todm.scoring.twins import Rate, TwinDifference, mean_rate, twin_difference
from espnet_todm.util.checks import is_number


@dataclass(frozen=True)
class Row:
    """One method at one length with all its seeds. methods: as planned; done: those that are trained, by seed."""

    label: str
    length: int
    methods: tuple[Method, ...]
    done: dict[Optional[int], Trained]

    @property
    def name(self) -> str:
        """As in tables."""
        return self.label if self.length == 1 else f"{self.label}, {self.length}x"

    @property
    def sizes(self) -> tuple[str, ...]:
        return self.methods[0].sizes

    def seeds(self, size: str, split: str) -> list[Optional[int]]:
        """The seeds for which a size has a score on a set."""
        return [seed for seed, trained in self.done.items() if trained.score(size, split) is not None]

    def rate(self, size: str, split: str) -> Optional[Rate]:
        """Error rate in percent over the seeds that are there."""
        seeds = self.seeds(size, split)
        if not seeds:
            return None
        errors, lengths = self.errors((size,), split, seeds)
        return mean_rate(errors, lengths)

    def errors(self, sizes: Sequence[str], split: str, seeds: Sequence[Optional[int]]) -> tuple[np.ndarray, np.ndarray]:
        """(S, U) errors, summed over sizes, of the seeds on the utterances, and (U,) reference units times sizes.

        Raises UserError if the scores are of different utterances.
        """
        scores = [[self.score(size, split, seed) for size in sizes] for seed in seeds]
        first = scores[0][0]
        for score in (score for of_seed in scores for score in of_seed):
            check_same_utterances(first, score, self.name)
        errors = np.stack([np.sum([score.errors() for score in of_seed], axis=0) for of_seed in scores])
        return errors, len(sizes) * first.lengths()

    def score(self, size: str, split: str, seed: Optional[int]) -> Score:
        """Raises KeyError where there is none."""
        score = self.done[seed].score(size, split)
        if score is None:
            raise KeyError((size, split, seed))
        return score

    def mean(self, values: Iterable[Any]) -> Optional[float]:
        """The mean over those that are numbers; None without any."""
        numbers = [value for value in values if is_number(value)]
        return fmean(numbers) if numbers else None

    def cost(self, size: str, attribute: str) -> Optional[float]:
        """``params`` or ``flops_per_second`` of a size, the mean over seeds."""
        results = (trained.size(size) for trained in self.done.values())
        return self.mean(getattr(result, attribute) for result in results if result)

    def budget_error(self, size: str) -> Optional[float]:
        """Percentage points between the share of the encoder that the size has and the one asked for; None if none was."""
        conf = self.methods[0].config["encoder_conf"]
        wanted: Any = conf["sizes"].get(size) if size != FULL else None
        criterion = conf.get("criterion", "params")
        results = (trained.size(size) for trained in self.done.values())
        share = self.mean(result.encoder_shares.get(criterion) for result in results if result)
        return 100 * (share - wanted) if is_number(wanted) and share is not None else None


@dataclass(frozen=True)
class Gap:
    """A size, or the mean of several, against the twin. rates: own and the twin's, in percent. more_params, more_flops: than
    the twin's, in percent; None for several sizes and where a cost is not known."""

    row: Row
    twin: str
    split: str
    seeds: int
    rates: tuple[float, float]
    difference: TwinDifference
    more_params: Optional[float] = None
    more_flops: Optional[float] = None


def check_same_utterances(one: Score, other: Score, name: str) -> None:
    """Raises UserError if two scores are of different utterances."""
    if one.utterances != other.utterances or (one.lengths() != other.lengths()).any():
        raise UserError(f"{name}: {other.split}/{other.size} was scored on other utterances; score all on the same set")


class Results:
    """All that is done of a plan. chosen: methods to show; done: those that are complete."""

    def __init__(self, chosen: Sequence[Method], done: Sequence[Trained]) -> None:
        trained = {one.method.name: one for one in done}
        groups: dict[tuple[str, int], list[Method]] = {}
        for method in chosen:
            groups.setdefault((method.label or method.name, method.length), []).append(method)
        self.rows = {
            key: Row(*key, tuple(methods), {m.seed: trained[m.name] for m in methods if m.name in trained})
            for key, methods in groups.items()
        }
        splits = (split for one in trained.values() for split in one.splits)
        self.splits = tuple(dict.fromkeys(splits))
        self._gaps: dict[tuple[str, tuple[str, ...], str], Optional[Gap]] = {}  # tables and plots ask for the same ones

    @property
    def lengths(self) -> list[int]:
        return sorted({length for _, length in self.rows})

    @property
    def sizes(self) -> list[str]:
        """All sizes, in the order of the plan."""
        return list(dict.fromkeys(size for row in self.rows.values() for size in row.sizes))

    def twin(self, row: Row, size: str) -> Optional[Row]:
        """The row of the size's twin, if the plan has one."""
        return self.rows.get((row.methods[0].twins.get(size, ""), row.length))

    def gap(self, row: Row, sizes: tuple[str, ...], split: str) -> Optional[Gap]:
        """The sizes' mean error rate against that of their twins, over the seeds that all have; None without any."""
        key = row.name, sizes, split
        if key not in self._gaps:
            self._gaps[key] = self._gap(row, sizes, split)
        return self._gaps[key]

    def _gap(self, row: Row, sizes: tuple[str, ...], split: str) -> Optional[Gap]:
        twins = [self.twin(row, size) for size in sizes]
        rows = [twin for twin in twins if twin is not None]
        if len(rows) < len(sizes):
            return None
        seeds = [
            seed
            for seed in row.done
            if all(
                seed in row.seeds(size, split) and seed in twin.seeds(size, split) for size, twin in zip(sizes, rows)
            )
        ]
        if not seeds:
            return None
        errors, lengths = row.errors(sizes, split, seeds)
        alone = np.sum([twin.errors((size,), split, seeds)[0] for size, twin in zip(sizes, rows)], axis=0)
        for size, twin in zip(sizes, rows):
            check_same_utterances(row.score(size, split, seeds[0]), twin.score(size, split, seeds[0]), twin.name)
        rates = tuple(100 * float(one.mean(0).sum() / lengths.sum()) for one in (errors, alone))
        names = ", ".join(dict.fromkeys(twin.name for twin in rows))
        more = [_more(row, rows[0], sizes, cost) for cost in ("params", "flops_per_second")]
        return Gap(row, names, split, len(seeds), (rates[0], rates[1]), twin_difference(errors, alone, lengths), *more)

    def check_twins(self) -> None:
        """Raises UserError if a size whose components were learned and its twin differ in cost."""
        for row in self.rows.values():
            for size in row.sizes:
                twin = self.twin(row, size)
                if twin is None or twin.methods[0].learned_by != row.label:
                    continue
                for seed in row.done.keys() & twin.done.keys():
                    ours, theirs = row.done[seed].size(size), twin.done[seed].size(size)
                    check_twin(
                        size, row.done[seed].method.name, _costs(ours), twin.done[seed].method.name, _costs(theirs)
                    )


def _more(row: Row, twin: Row, sizes: Sequence[str], cost: str) -> Optional[float]:
    """By how many percent the cost of a single size exceeds its twin's."""
    own, other = row.cost(sizes[0], cost), twin.cost(sizes[0], cost)
    return 100 * (own / other - 1) if len(sizes) == 1 and own and other else None


def _costs(result: Optional[SizeResult]) -> dict[str, Optional[float]]:
    return {"parameters": result.params, "FLOPs per second": result.flops_per_second} if result else {}
