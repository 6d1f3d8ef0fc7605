"""Which epochs' models count: as the best, for averages, for early stopping.

While sizes are still being chosen (``encoder.pending``), an epoch's model is a step on the way. When they are chosen, the
components of every module are sorted: weights from before lie in another order, so that an average over both would be no
model at all, and what was measured before is of sizes that no longer exist. The contest therefore begins anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union
from unittest import mock

from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train import trainer
from espnet2.train.reporter import Reporter, SubReporter


class CandidateReporter(Reporter):
    """ESPnet's Reporter, for which only epochs that ended with chosen sizes, and whose value is finite, compete.

    Args:
        pending: whether sizes have still to be chosen. As long as they have, all epochs so far compete with each other.
        configured: what a later run that resumes this one shall know of its options; it then has it as
            ``configured_before``.
    """

    def __init__(self, pending: Callable[[], bool], configured: Optional[dict[str, Any]] = None) -> None:
        super().__init__()
        self.pending, self.configured = pending, configured or {}
        self.configured_before: dict[str, Any] = {}
        self.last_pending = 0  # the last epoch that ended while sizes had still to be chosen

    def finish_epoch(self, sub_reporter: SubReporter) -> None:
        super().finish_epoch(sub_reporter)
        if self.pending():
            self.last_pending = self.epoch

    @property
    def left_out(self) -> int:
        """So many first epochs are out of the contest."""
        return 0 if self.pending() else self.last_pending

    def sort_epochs_and_values(self, key: str, key2: str, mode: str) -> list[tuple[int, float]]:
        """(epoch, value), the best first; those that are not finite only where no other is there."""
        competing = {epoch: stats.get(key, {}) for epoch, stats in self.stats.items() if epoch > self.left_out}
        values = [(epoch, stats[key2]) for epoch, stats in competing.items() if key2 in stats]
        if not values or mode not in ("min", "max"):
            return list(super().sort_epochs_and_values(key, key2, mode))  # which raises what ESPnet raises
        finite = [entry for entry in values if math.isfinite(entry[1])]
        return sorted(finite or values, key=lambda entry: entry[1], reverse=mode == "max")

    def check_early_stopping(self, *args: Any, **kwargs: Any) -> bool:
        """As ESPnet's; patience begins when sizes are chosen."""
        return not self.pending() and bool(super().check_early_stopping(*args, **kwargs))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last_pending": self.last_pending, "configured": self.configured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.last_pending = state_dict.get("last_pending", 0)  # not there in stock ESPnet's
        self.configured_before = state_dict.get("configured", {})


def average_candidates(
    output_dir: Path,
    reporter: Reporter,
    best_model_criterion: Sequence[Sequence[str]],
    nbest: Union[Collection[int], int],
    suffix: Optional[str] = None,
) -> None:
    """ESPnet's averages, each made by itself: made in one call, ESPnet's second average of a criterion, and that of a second
    criterion with the same best epoch, would take the first average for that epoch's model.

    Where fewer models compete than shall be averaged because others are out of the contest, those are averaged that are in
    it; ESPnet, where a run has fewer epochs than that, takes the best one alone.
    """
    wanted = [nbest] if isinstance(nbest, int) else list(nbest)
    for phase, key, mode in best_model_criterion:
        if not reporter.has(phase, key):
            continue
        there = len(reporter.sort_epochs(phase, key, mode))
        counts = {count for count in wanted if count <= there}
        if wanted and there < min(max(wanted), len(reporter.stats)):
            counts.add(there)
            logging.warning(
                "%s.%s: an average of %d models, not of %d; of other epochs the value is not finite, or they are from before"
                " sizes were chosen",
                *(phase, key, there, max(wanted)),
            )
        for count in sorted(counts or {1}):
            average_nbest_models(output_dir, reporter, [[phase, key, mode]], [count], suffix)


@contextmanager
def candidates(model: Any, configured: dict[str, Any]) -> Iterator[None]:
    """Within this context ESPnet's trainer reports and averages as above; it names both in its own module alone."""

    def make() -> CandidateReporter:
        return CandidateReporter(lambda: bool(getattr(model.encoder, "pending", "")), configured)

    with mock.patch.multiple(trainer, Reporter=make, average_nbest_models=average_candidates):
        yield
