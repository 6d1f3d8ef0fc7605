"""Checks of a training's inputs and packages: tables, statistics, batches, and optional packages for its reports."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.errors import UserError, damage_told
from espnet_todm.espnet.faults import faults_told, words
from espnet_todm.espnet.task_options import is_installed
from espnet_todm.util.files import PathLike, has_mark, read_lines, split_key

SETS = ("train", "valid")
# ESPnet's data types whose files have one utterance per line, with its name first.
_TABLES = (
    *("sound", "multi_columns_sound", "variable_columns_sound", "kaldi_ark", "npy"),
    *("text", "text_int", "text_float", "csv_int", "csv_float"),
)
# Optional features of training: option -> (package, result that is missing without it).
_OPTIONAL = {"use_tensorboard": ("tensorboard", "curves"), "use_matplotlib": ("matplotlib", "pictures")}
_END = object()
_BROKEN = (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def check_data(options: argparse.Namespace) -> None:
    """Raises UserError for tables that are missing, empty or inconsistent, and for fewer utterances than processes."""
    if options.collect_stats or getattr(options, "multiple_iterator", False):
        return
    processes = max(options.dist_world_size or 1, options.ngpu if options.multiprocessing_distributed else 1)
    for name in SETS:
        tables = [path for path, _, kind in getattr(options, f"{name}_data_path_and_name_and_type") if kind in _TABLES]
        shapes = getattr(options, f"{name}_shape_file")
        if not tables or not shapes:
            continue  # ESPnet names the option that is missing
        keys = {path: _keys(path, name) for path in [*shapes, *tables]}
        for path in keys:
            _check_keys(shapes[0], keys[shapes[0]], path, keys[path])
        count = len(keys[shapes[0]])
        if count < processes:
            raise UserError(
                f"{name} set: utterances in {shapes[0]}: {count}, but {processes} processes share each batch; take more "
                "data, or fewer processes (--ngpu, --cpu_processes of run.sh)"
            )


def check_statistics(path: PathLike) -> None:
    """Raises UserError unless the file has the statistics for global normalisation: count, sum and sum of squares (or
    Kaldi's matrix of them), all finite."""
    if not Path(path).is_file():
        raise UserError(f"stats_file: {path}: no such file; stage 10 (--collect_stats) makes it")
    with damage_told(path, "collect the statistics again (stage 10)"):
        stored = np.load(path)
        arrays = [stored] if isinstance(stored, np.ndarray) else [stored[key] for key in ("count", "sum", "sum_square")]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("numbers that are not finite")


def without_missing_packages(options: Any) -> None:
    """Switch off, with a warning, options whose package is not installed. ESPnet uses tensorboard by default."""
    for option, (package, lost) in _OPTIONAL.items():
        if getattr(options, option, False) and not is_installed(package):
            logging.warning("%s: %s is not installed, so there will be no %s of the training", option, package, lost)
            setattr(options, option, False)


@contextmanager
def batch_errors(name: str) -> Iterator[None]:
    """Turns errors that ESPnet raises while it makes the batches of a set into one line. Some have no message."""
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        told = words(error)
        hint = "; say drop_last_iter: true, or another batch_size" if "world_size" in told else ""
        raise UserError(f"{name} set: its batches cannot be made: {told}{hint}") from error


class Batches:
    """The batches of a set. An unreadable batch gives a one-line error. ``len`` works if the source has a length.

    hand: function from the iterator of batches to the iterator that this object yields.
    """

    def __init__(
        self, batches: Iterable[Any], name: str, hand: Callable[[Iterator[Any]], Iterator[Any]] = iter
    ) -> None:
        self.batches, self.name, self.hand = batches, name, hand

    def __iter__(self) -> Iterator[Any]:
        return self.hand(self._read())

    def _read(self) -> Iterator[Any]:
        source = iter(self.batches)
        while True:
            try:
                with faults_told():
                    batch = next(source, _END)
            except UserError:
                raise
            except _BROKEN as error:
                raise UserError(f"{self.name} set: a batch cannot be read: {words(error)}") from error
            if batch is _END:
                return
            yield batch

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


def _keys(path: PathLike, name: str) -> dict[str, None]:
    keys = dict.fromkeys(split_key(line)[0] for line in read_lines(path))
    keys.pop("", None)
    if has_mark(path):  # this package accepts it, but ESPnet reads these tables itself
        raise UserError(
            f"{path}: begins with a byte order mark, which ESPnet takes for a part of the first name; save it as UTF-8 "
            f"without BOM: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
        )
    if not keys:
        raise UserError(f"{name} set: {path} holds no utterance")
    return keys


def _check_keys(shapes: PathLike, wanted: dict[str, None], path: PathLike, there: dict[str, None]) -> None:
    lacking: Sequence[str] = [key for key in wanted if key not in there]
    if lacking:
        raise UserError(
            f"{path}: lacks {len(lacking)} of {len(wanted)} utterances of {shapes}, the first is {lacking[0]}; collect the "
            "statistics again when the data have changed"
        )
