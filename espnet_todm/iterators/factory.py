"""ESPnet's iterator factories, filled with batches of lhotse's cuts."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Any, Optional

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader

from espnet_todm.errors import UserError
from espnet_todm.iterators.batches import CutBatches, Drawn, shared
from espnet_todm.iterators.loading import BatchReader, read_noise
from espnet_todm.iterators.options import iterator_options
from espnet_todm.iterators.position import TrainingBatches
from espnet_todm.iterators.sources import ALL, Share, open_source


class LhotseIterFactory(AbsIterFactory):
    """Yields the batches of an epoch: (names, {speech, speech_lengths, text, text_lengths}).

    Args:
        draw: epoch -> its batches.
        reader: reads a batch.
        options: ESPnet's. ``num_workers``, ``ngpu`` and ``seed`` are used.
        position: of a training, for its checkpoints.
    """

    def __init__(
        self,
        draw: Callable[[int], Iterator[Drawn]],
        reader: BatchReader,
        options: argparse.Namespace,
        position: Optional[TrainingBatches] = None,
    ) -> None:
        self.draw, self.reader, self.options, self.position = draw, reader, options, position

    def build_iter(self, epoch: int, shuffle: Optional[bool] = None) -> Iterator[Any]:
        """The batches of epoch ``epoch``, the first being 1. They have a length if ``num_iters_per_epoch`` is given."""
        loader: DataLoader[Any] = DataLoader(
            self.reader,
            batch_size=None,
            sampler=_Drawn(self.draw, epoch),
            num_workers=self.options.num_workers,
            pin_memory=self.options.ngpu > 0,
            worker_init_fn=partial(_seed_worker, self.options.seed + epoch),
        )
        size = self.position.per_epoch if self.position is not None else None
        return _Epoch(loader) if size is None else _SizedEpoch(loader, size)  # type: ignore[return-value]


class _Drawn:
    """The drawn batches of an epoch."""

    def __init__(self, draw: Callable[[int], Iterator[Drawn]], epoch: int) -> None:
        self.draw, self.number = draw, epoch

    def __iter__(self) -> Iterator[Drawn]:
        return self.draw(self.number)


class _Epoch:
    """Batches whose number is not known."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _SizedEpoch(_Epoch):
    """Batches with a length."""

    def __init__(self, batches: DataLoader[Any], size: int) -> None:
        super().__init__(batches)
        self.size = size

    def __len__(self) -> int:
        return self.size


def build_factory(
    args: argparse.Namespace,
    mode: str,
    share: Share,
    preprocess: Any,
    collate: Callable[[Collection[Any]], Any],
) -> Optional[LhotseIterFactory]:
    """The factory of ESPnet's mode ``train``, ``valid`` or ``plot_att``; None where ESPnet's own is to be used.

    share: rank and number of ranks. preprocess, collate: ESPnet's functions for this mode.
    Raises UserError for options that do not fit the model's or the data.
    """
    options = iterator_options(args)
    if preprocess is None:
        raise UserError("use_preprocessor: false, but iterator: lhotse needs true: it makes tokens of the cuts' words")
    training = mode == "train"
    path = options.train if training else options.valid
    if path is None:
        return None
    name = "train" if training else "valid"
    source = open_source(path, options.field, f"iterator_conf.{name}")
    noise = read_noise(options.noise, options.sampling_rate) if training else []
    reader = BatchReader(source, options, preprocess, collate, args.train_dtype, noise)
    batches = CutBatches(source, options, args.seed, share if training else ALL, training, name)
    if training:
        position = TrainingBatches(batches, args.num_iters_per_epoch)
        return LhotseIterFactory(position.epoch, reader, args, position)
    if mode == "valid":
        return LhotseIterFactory(lambda epoch: shared(batches.of_pass(0), share), reader, args)
    return LhotseIterFactory(lambda epoch: _single(batches, args.num_att_plot), reader, args)


def _single(batches: CutBatches, count: int) -> Iterator[Drawn]:
    """The first cuts, one in a batch."""
    return (Drawn([cut], str(number)) for number, cut in enumerate(islice(batches.cuts(0), count)))


def _seed_worker(seed: int, number: int) -> None:
    """ESPnet's preprocessor draws from these generators in a data loader's worker."""
    random.seed(seed + number)
    np.random.seed(seed + number)
    torch.set_num_threads(1)
