"""Batches of cuts by lhotse's DynamicBucketingSampler, as a function of seed, pass and number; and the position in them.

A pass is one run through the corpus. An epoch of ESPnet is one pass, or ``num_iters_per_epoch`` batches of an endless row of
passes; then the position in the row is part of the checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple, Optional, Union

from lhotse.cut import MonoCut
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketingSampler, estimate_duration_buckets

from espnet_todm.errors import UserError
from espnet_todm.iterators.options import LhotseOptions
from espnet_todm.iterators.sources import ALL, Manifest, Shar, Share, marked

ESTIMATED_FROM = 10000  # cuts whose lengths decide on the buckets


class Drawn(NamedTuple):
    """The cuts of a batch, and what its noise is drawn with."""

    cuts: list[MonoCut]
    seed: str


class CutBatches:
    """The batches that one rank draws.

    Args:
        source: where the cuts come from.
        options: what the batches are made of.
        seed: of the order, the speeds and the noise.
        share: the rank, and the number of ranks. Each rank has cuts of its own, and the same buckets.
        training: whether cuts are shuffled, left out by length, and read at another speed.
        name: of the option that names the source, for errors.
    """

    def __init__(
        self,
        source: Union[Manifest, Shar],
        options: LhotseOptions,
        seed: int = 0,
        share: Share = ALL,
        training: bool = True,
        name: str = "train",
    ) -> None:
        self.source, self.options, self.seed, self.share, self.training = source, options, seed, share, training
        self.name = name
        self.bins = self._bins()

    def of_pass(self, number: int) -> Iterator[Drawn]:
        """The batches of a pass. Raises UserError if it has none, and for a cut that does not fit into a batch."""
        batch = None
        for index, batch in enumerate(self._sampled(number)):
            yield Drawn(list(batch), f"{self.seed} {number} {self.share.rank} {index}")
        if batch is None:
            raise UserError(
                f"iterator_conf.{self.name}: {self._where()}: no cut to read for rank {self.share.rank} of"
                f" {self.share.ranks}" + (", with min_seconds and max_seconds" if self.training else "")
            )

    def cuts(self, number: int) -> Iterator[MonoCut]:
        """The cuts of a pass as they come to the sampler: at their speed, none too long."""
        options = self.options
        order = f"{self.seed} {number}" if self.training else None
        for cut in self.source.cuts(self.share, order):
            if self.training:
                cut = self._at_speed(cut, number)
                if cut.duration < options.min_seconds or cut.duration > (options.max_seconds or float("inf")):
                    continue
            self._check_length(cut)
            yield cut

    def _sampled(self, number: int) -> Iterator[Iterable[MonoCut]]:
        options = self.options
        sampler = DynamicBucketingSampler(
            _Cuts(self, number),
            max_duration=options.max_duration,
            max_cuts=options.max_cuts,
            quadratic_duration=options.quadratic_duration,
            duration_bins=self.bins,
            buffer_size=options.buffer_size,
            shuffle=self.training,
            world_size=1,
            rank=0,
            seed=self.seed,
        )
        sampler.set_epoch(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no lengths, where there is one bucket
            begun = iter(sampler)
        while (batch := next(begun, None)) is not None:  # `for` would begin anew
            yield batch

    def _at_speed(self, cut: MonoCut, number: int) -> MonoCut:
        if self.options.speed_factors is None:
            return cut
        factor = Random(f"{self.seed} {number} {cut.id}").choice(list(self.options.speed_factors))
        return cut if factor == 1 else marked(cut.perturb_speed(factor), speed=factor)

    def _check_length(self, cut: MonoCut) -> None:
        options, length = self.options, cut.duration
        if options.quadratic_duration is not None:
            length += length**2 / options.quadratic_duration
        if length > options.max_duration:
            counted = "" if length == cut.duration else f" (counted as {length:.1f} s by quadratic_duration)"
            raise UserError(
                f"iterator_conf.max_duration: {options.max_duration:g}, but {cut.id} of {self._where()} takes"
                f" {cut.duration:.1f} s{counted}; raise it, or leave out what is longer with max_seconds"
            )

    def _bins(self) -> list[float]:
        """Lengths in seconds between the buckets, the same on all ranks."""
        lengths = TimeConstraint(max_duration=self.options.max_duration)
        first = list(islice(self.source.cuts(), ESTIMATED_FROM))
        buckets = min(self.options.num_buckets, len(first))
        return list(map(float, estimate_duration_buckets(first, buckets, lengths))) if buckets > 1 else []

    def _where(self) -> str:
        return str(self.source.path if isinstance(self.source, Manifest) else self.source.folder)


class _Cuts:
    """The cuts of one pass, which a sampler may begin to read more than once."""

    def __init__(self, batches: CutBatches, number: int) -> None:
        self.batches, self.number = batches, number

    def __iter__(self) -> Iterator[MonoCut]:
        return self.batches.cuts(self.number)


def shared(batches: Iterable[Drawn], share: Share) -> Iterator[Drawn]:
    """The part of each batch that a rank gets, so that all ranks have as many batches: for validation. A batch with fewer
    cuts than ranks is joined to another. Raises UserError if there are fewer cuts than ranks."""
    held: Optional[Drawn] = None
    for drawn in batches:
        if held is not None and min(len(held.cuts), len(drawn.cuts)) >= share.ranks:
            yield Drawn(held.cuts[share.rank :: share.ranks], held.seed)
            held = drawn
        else:
            held = drawn if held is None else Drawn([*held.cuts, *drawn.cuts], held.seed)
    if held is None or len(held.cuts) < share.ranks:
        raise UserError(
            f"iterator_conf.valid: {len(held.cuts) if held else 0} utterances, but {share.ranks} ranks share each batch"
        )
    yield Drawn(held.cuts[share.rank :: share.ranks], held.seed)
