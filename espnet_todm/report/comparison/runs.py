"""Trains and scores what a plan names: resumable after a kill, and by several workers beside each other.

Each experiment has a lock that one worker holds. What another worker holds is left to it, and the next one is taken. A
killed worker's lock is free once the processes that it started have ended, which they do with it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import yaml

from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import read_yaml
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.trained import (
    SUFFIX,
    Trained,
    chosen_there,
    config_of,
    from_experiment,
    read_trained,
    write_trained,
)
from espnet_todm.report.comparison.twins import learned_config
from espnet_todm.util.files import PathLike, write_text
from espnet_todm.util.lifetime import end_with
from espnet_todm.util.stage_marker import Busy, as_recorded, completed_with, exclusive, is_complete, mark_complete

SECONDS_BETWEEN_LOOKS = 10.0


class Runs:
    """The experiments of a plan, in ``exp/<folder>`` of a recipe.

    methods: all of the plan. recipe: its run.sh, whose data stages are done. options: for the recipe. results: folder with
    the results of trainings (see :mod:`espnet_todm.report.comparison.trained`), also of other machines.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        recipe: PathLike,
        folder: str,
        options: Sequence[str] = (),
        results: Optional[PathLike] = None,
    ) -> None:
        self.methods = list(methods)
        self.run_sh, self.folder, self.options = Path(recipe), folder, list(options)
        self.results = None if results is None else Path(results)
        self._by_label = {(method.label, method.seed, method.length): method for method in methods}
        self._learned: dict[str, Method] = {}

    def experiment(self, method: Method) -> Path:
        return self.run_sh.parent / "exp" / self.folder / method.slug

    def find(self, label: str, like: Method) -> Method:
        """The method of this label with the seed and the length of another."""
        return self._by_label[label, like.seed, like.length]

    def result(self, method: Method) -> Optional[Path]:
        """The file of its results, there or not; None without a folder for them."""
        return None if self.results is None else self.results / f"{method.slug}{SUFFIX}"

    def configured(self, method: Method) -> Optional[Method]:
        """The method with its complete configuration; None while the method that chooses its components is not done."""
        if not method.learned_by:
            return method
        if method.name not in self._learned:
            owner = self.find(method.learned_by, method)
            kept = self._kept(owner)
            if kept is None:
                return None
            (size,) = method.sizes
            self._learned[method.name] = replace(method, config=learned_config(method.config, size, kept[size]))
        return self._learned[method.name]

    def _kept(self, owner: Method) -> Optional[Mapping[str, Mapping[str, list[int]]]]:
        """What the sizes keep whose components a method chose; None while it is not done."""
        if self._has_experiment(owner):
            return chosen_there(owner, self.experiment(owner))
        path = self._stored(owner)
        return None if path is None else read_trained(owner, path).kept

    def is_done(self, method: Method) -> bool:
        """Whether there is a completed experiment with this method's configuration, or a file of its results."""
        return self._has_experiment(method) or self._stored(method) is not None

    def _has_experiment(self, method: Method) -> bool:
        known, record = self.configured(method), completed_with(self.experiment(method))
        return known is not None and isinstance(record, dict) and record.get("config") == as_recorded(known.config)

    def _stored(self, method: Method) -> Optional[Path]:
        """The file of this method's results, if it is there and of its configuration."""
        known, path = self.configured(method), self.result(method)
        there = known is not None and path is not None and config_of(path) == as_recorded(known.config)
        return path if there else None

    def done(self, chosen: Sequence[Method]) -> list[Trained]:
        """Those of the chosen methods that are done. Results of experiments are written to the folder of results."""
        return [self._trained(method) for method in chosen if self.is_done(method)]

    def _trained(self, method: Method) -> Trained:
        known, path = self.configured(method) or method, self.result(method)
        if path is not None and not self._has_experiment(method):
            return read_trained(known, path)
        trained = from_experiment(known, self.experiment(method))
        if path is not None:
            write_trained(trained, path)
        return trained

    def run(self, chosen: Sequence[Method]) -> None:
        """Train and score these methods, those of other workers by waiting for them.

        A method that fails does not stop the others. Raises UserError at the end, which names those that failed.
        """
        left, failed, told = list(chosen), dict[str, str](), False
        while left:
            before = len(left)
            for method in list(left):
                try:
                    ended = self._attempt(method, left)
                except UserError as error:
                    logging.error("%s", error)
                    failed[method.name], ended = str(error), True
                if ended:
                    left.remove(method)
            if left and len(left) == before:
                if not told:
                    logging.info("waiting for other workers: %s", "; ".join(method.name for method in left))
                told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if len(failed) == 1 == len(chosen):
            raise UserError(next(iter(failed.values())))
        if failed:
            raise UserError(f"{len(failed)} of {len(chosen)} trainings failed: " + "; ".join(failed.values()))

    def _attempt(self, method: Method, left: Sequence[Method]) -> bool:
        """Run one method. False while it is another worker's, or waits for another method."""
        known, path = self.configured(method), self._stored(method)
        if path is not None:
            logging.info("%s: done already, its results are in %s", method.name, path)
            return True
        if known is None:
            owner = self.find(method.learned_by, method)
            if owner in left or self._is_busy(owner) or self.is_done(owner):
                return False
            raise UserError(f"{method.name}: needs the sizes of {owner.name}, which is not done; run that first")
        try:
            with self._lock(method) as descriptor:
                train_and_score(known, self.run_sh, self.folder, self.options, descriptor)
        except Busy:
            return False
        return True

    def _is_busy(self, method: Method) -> bool:
        try:
            with self._lock(method):
                return False
        except Busy:
            return True

    @contextmanager
    def _lock(self, method: Method) -> Iterator[int]:
        # Not the lock of the experiment's folder, which its training takes.
        with exclusive(self.experiment(method).with_name(f"{method.slug}.worker")) as descriptor:
            yield descriptor


def train_and_score(
    method: Method, recipe: PathLike, folder: str, options: Sequence[str], lock: Optional[int] = None
) -> Path:
    """Train, extract, decode and score one method by the recipe's stages 11 to 14; returns its experiment.

    What is done already is not done again; what was killed goes on. The recipe ends with this process. lock: a file
    descriptor that it inherits. Raises UserError when a stage fails, and when the experiment there was made with another
    configuration.
    """
    run_sh = Path(recipe)
    experiment = run_sh.parent / "exp" / folder / method.slug
    record = {"config": dict(method.config), "options": list(options)}
    if is_complete(experiment, record):
        logging.info("%s: done already", method.name)
        return experiment
    config = run_sh.parent / "exp" / folder / f"{method.slug}.yaml"
    if experiment.is_dir() and (not config.is_file() or read_yaml(config) != method.config):
        raise UserError(f"{experiment}: was made with another configuration; remove it or choose another --folder")
    write_text(config, yaml.safe_dump(dict(method.config), sort_keys=False))
    command = [f"./{run_sh.name}", "--stage", "11", "--stop_stage", "14", *options]
    command += ["--asr_config", str(config.relative_to(run_sh.parent)), "--asr_tag", f"{folder}/{method.slug}"]
    command += ["--sizes", " ".join(method.sizes)]
    logging.info("%s: %s", method.name, " ".join(command))
    inherited = () if lock is None else (lock,)
    end = partial(end_with, os.getpid())
    done = subprocess.run(command, cwd=run_sh.parent, env=os.environ, check=False, pass_fds=inherited, preexec_fn=end)
    if done.returncode:
        raise UserError(f"{method.name}: the recipe stopped with status {done.returncode}; see what it printed above")
    mark_complete(experiment, record)
    return experiment
