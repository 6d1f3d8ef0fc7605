"""Selects the epochs whose models are candidates for the best model, for averages and for early stopping.

When a training chooses its sizes (at the switch; before it, ``encoder.pending`` is set), it sorts the components of every
module. Weights from before the switch have another order, so an average over both would be invalid. Scores from before the
switch belong to sizes that no longer exist. Therefore only epochs after the switch are candidates.
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

from espnet_todm.iterators.position import TrainingBatches, check_other_iterator


class CandidateReporter(Reporter):
    """ESPnet's Reporter. Only epochs that end after the switch, and whose value is finite, are candidates.

    Args:
        pending: returns whether sizes are not chosen yet. Until they are, all epochs are candidates.
        configured: options that are stored in the checkpoint. A run that resumes from it has them as
            ``configured_before``.
        batches: the training's batches, if they have a position that is stored in the checkpoint.
    """

    def __init__(
        self,
        pending: Callable[[], bool],
        configured: Optional[dict[str, Any]] = None,
        batches: Optional[TrainingBatches] = None,
    ) -> None:
        super().__init__()
        self.pending, self.configured, self.batches = pending, configured or {}, batches
        self.configured_before: dict[str, Any] = {}
        self.last_pending = 0  # the last epoch that ended before the sizes were chosen

    def finish_epoch(self, sub_reporter: SubReporter) -> None:
        super().finish_epoch(sub_reporter)
        if self.pending():
            self.last_pending = self.epoch

    @property
    def left_out(self) -> int:
        """Number of first epochs that are not candidates."""
        return 0 if self.pending() else self.last_pending

    def sort_epochs_and_values(self, key: str, key2: str, mode: str) -> list[tuple[int, float]]:
        """(epoch, value) of all candidates, best first. Values that are not finite are included only if all are."""
        competing = {epoch: stats.get(key, {}) for epoch, stats in self.stats.items() if epoch > self.left_out}
        values = [(epoch, stats[key2]) for epoch, stats in competing.items() if key2 in stats]
        if not values or mode not in ("min", "max"):
            return list(super().sort_epochs_and_values(key, key2, mode))  # raises ESPnet's errors
        finite = [entry for entry in values if math.isfinite(entry[1])]
        return sorted(finite or values, key=lambda entry: entry[1], reverse=mode == "max")

    def check_early_stopping(self, *args: Any, **kwargs: Any) -> bool:
        """As in ESPnet, but patience begins when sizes are chosen."""
        return not self.pending() and bool(super().check_early_stopping(*args, **kwargs))

    def state_dict(self) -> dict[str, Any]:
        batches = {} if self.batches is None else {"batches": self.batches.state_dict()}
        return {**super().state_dict(), "last_pending": self.last_pending, "configured": self.configured, **batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.last_pending = state_dict.get("last_pending", 0)  # stock ESPnet's checkpoints lack it
        self.configured_before = state_dict.get("configured", {})
        if self.batches is not None:
            self.batches.load_state_dict(state_dict.get("batches"))
        elif "batches" in state_dict:
            check_other_iterator(state_dict["batches"])


def average_candidates(
    output_dir: Path,
    reporter: Reporter,
    best_model_criterion: Sequence[Sequence[str]],
    nbest: Union[Collection[int], int],
    suffix: Optional[str] = None,
) -> None:
    """ESPnet's averaging, with one call for each average. In one call, ESPnet would take the first average of a criterion
    for the model of the best epoch, in its second average and for another criterion with the same best epoch.

    If excluded epochs leave fewer candidates than the requested number, all candidates are averaged. ESPnet itself takes
    only the best model if a run has fewer epochs than that.
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
def candidates(model: Any, configured: dict[str, Any], batches: Optional[TrainingBatches] = None) -> Iterator[None]:
    """In this context ESPnet's trainer uses the Reporter and the averaging above. Only its module refers to them by name."""

    def make() -> CandidateReporter:
        return CandidateReporter(lambda: bool(getattr(model.encoder, "pending", "")), configured, batches)

    with mock.patch.multiple(trainer, Reporter=make, average_nbest_models=average_candidates):
        yield
