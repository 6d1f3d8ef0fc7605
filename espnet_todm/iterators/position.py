"""The position of a training in the row of its batches: what an epoch draws, and what a checkpoint keeps of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Optional

import torch

from espnet_todm.errors import UserError

if TYPE_CHECKING:  # this module is imported in every training, lhotse where it is used
    from espnet_todm.iterators.batches import CutBatches, Drawn

# Options that decide which batches are drawn.
_SAMPLER = (
    *("max_duration", "quadratic_duration", "max_cuts", "num_buckets", "buffer_size", "min_seconds", "max_seconds"),
    "speed_factors",
)


class TrainingBatches:
    """The batches of each epoch.

    Args:
        batches: those of this rank.
        per_epoch: batches of an epoch (``num_iters_per_epoch``). None: an epoch is a pass through the corpus, and the
            position a function of its number.
    """

    def __init__(self, batches: CutBatches, per_epoch: Optional[int] = None) -> None:
        self.batches, self.per_epoch = batches, per_epoch
        self.at = (0, 0)  # the pass of the next batch, and its number in the pass
        self.all_at = [self.at] * batches.share.ranks  # of all ranks, at the end of an epoch
        self._row: Optional[Iterator[Drawn]] = None

    def epoch(self, number: int) -> Iterator[Drawn]:
        """The batches of epoch ``number``, the first being 1. Raises UserError as :class:`CutBatches`."""
        if self.per_epoch is None:
            yield from self.batches.of_pass(number - 1)
            self.all_at = [(number, 0)] * self.batches.share.ranks
            return
        if self._row is None:
            self._row = self._endless()
        yield from islice(self._row, self.per_epoch)
        self.all_at = self._of_all_ranks()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps at the end of an epoch, of all ranks. Only numbers and texts."""
        options = self.batches.options
        sampler = {name: _plain(getattr(options, name)) for name in _SAMPLER}
        return {
            "seed": self.batches.seed,
            "ranks": self.batches.share.ranks,
            "num_iters_per_epoch": self.per_epoch,
            "sampler": sampler,
            "lengths": [round(length, 6) for length in self.batches.bins],
            "at": [list(at) for at in self.all_at],
        }

    def load_state_dict(self, state: Optional[Mapping[str, Any]]) -> None:
        """Go on where the state was taken. None: the state of a training with another iterator.

        Raises UserError if the batches would be others, unless ``iterator_conf.resume`` allows a new pass.
        """
        differing = _differing(state, self.state_dict())
        if state is not None and differing is None:
            self._move([(at[0], at[1]) for at in state["at"]])
            return
        exact = self.per_epoch is not None or (state is not None and state["num_iters_per_epoch"] is not None)
        if exact and self.batches.options.resume == "exact":
            raise UserError(
                f"{differing}, so the row of its batches cannot be continued; resume with that, or begin a new pass"
                " through the corpus with iterator_conf.resume: next_pass"
            )
        logging.warning("%s: the training goes on with a new pass through the corpus", differing)
        after = max((at[0] + (at[1] > 0) for at in state["at"]), default=0) if state is not None else 0
        self._move([(after, 0)] * self.batches.share.ranks)

    def _move(self, all_at: list[tuple[int, int]]) -> None:
        self.all_at = all_at
        self.at, self._row = all_at[self.batches.share.rank], None

    def _endless(self) -> Iterator[Drawn]:
        """Batches from the position on, pass by pass. Those before it are drawn, but not read."""
        number, skipped = self.at
        while True:
            for index, drawn in enumerate(self.batches.of_pass(number)):
                if index >= skipped:
                    self.at = (number, index + 1)
                    yield drawn
            number, skipped = number + 1, 0

    def _of_all_ranks(self) -> list[tuple[int, int]]:
        if self.batches.share.ranks == 1:
            return [self.at]
        gathered: list[Any] = [None] * self.batches.share.ranks
        torch.distributed.all_gather_object(gathered, self.at)
        return gathered


def check_other_iterator(state: Mapping[str, Any]) -> None:
    """For a checkpoint with such a state, and a training with ESPnet's own iterator. Raises UserError if the state is from
    the middle of a pass; otherwise ESPnet's batches are a function of the epoch."""
    if state["num_iters_per_epoch"] is not None:
        raise UserError(
            "iterator: none, but the checkpoint was trained with lhotse and num_iters_per_epoch:"
            f" {state['num_iters_per_epoch']}, so the row of its batches cannot be continued; say iterator: lhotse, or begin"
            " anew from its weights with --init_param and another --output_dir"
        )
    logging.warning(
        "iterator: none, but the checkpoint was trained with lhotse: the training goes on with other batches"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differing(before: Optional[Mapping[str, Any]], now: Mapping[str, Any]) -> Optional[str]:
    """What differs between two states but the position, in words."""
    if before is None:
        return "iterator: lhotse, but the checkpoint was trained with another iterator"
    for name in ("ranks", "seed", "num_iters_per_epoch"):
        if before[name] != now[name]:
            return f"{name}: {now[name]}, but the checkpoint was trained with {before[name]}"
    for name, value in now["sampler"].items():
        if before["sampler"].get(name) != value:
            return f"iterator_conf.{name}: {value}, but the checkpoint was trained with {before['sampler'].get(name)}"
    if before["lengths"] != now["lengths"]:
        return "iterator_conf.train: its cuts have other lengths than those that the checkpoint was trained with"
    return None
