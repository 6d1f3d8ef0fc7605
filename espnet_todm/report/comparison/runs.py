"""Trains and scores what a plan names: resumable after a kill, and by several workers beside each other.

Each experiment has a lock that one worker holds. What another worker holds is left to it, and the next one is taken. A
killed worker's lock is free once the processes that it started have ended, which they do with it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import yaml

from espnet_todm.components import ComponentTable
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import read_yaml
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.twins import card_of, learned_config
from espnet_todm.util.files import PathLike, write_text
from espnet_todm.util.lifetime import end_with
from espnet_todm.util.stage_marker import Busy, as_recorded, completed_with, exclusive, is_complete, mark_complete

SECONDS_BETWEEN_LOOKS = 10.0


class Runs:
    """The experiments of a plan, in ``exp/<folder>`` of a recipe.

    methods: all of the plan. recipe: its run.sh, whose data stages are done. options: for the recipe.
    """

    def __init__(self, methods: Sequence[Method], recipe: PathLike, folder: str, options: Sequence[str] = ()) -> None:
        self.methods = list(methods)
        self.run_sh, self.folder, self.options = Path(recipe), folder, list(options)
        self._by_label = {(method.label, method.seed, method.length): method for method in methods}
        self._learned: dict[str, Method] = {}

    def experiment(self, method: Method) -> Path:
        return self.run_sh.parent / "exp" / self.folder / method.slug

    def find(self, label: str, like: Method) -> Method:
        """The method of this label with the seed and the length of another."""
        return self._by_label[label, like.seed, like.length]

    def configured(self, method: Method) -> Optional[Method]:
        """The method with its complete configuration; None while the method that chooses its components is not done."""
        if not method.learned_by:
            return method
        if method.name not in self._learned:
            owner = self.find(method.learned_by, method)
            if not self.is_done(owner):
                return None
            folder, (size,) = self.experiment(owner), method.sizes
            config = learned_config(method.config, size, card_of(folder, size), encoder_table(folder))
            self._learned[method.name] = replace(method, config=config)
        return self._learned[method.name]

    def is_done(self, method: Method) -> bool:
        """Whether the experiment was completed with this method's configuration."""
        known, record = self.configured(method), completed_with(self.experiment(method))
        return known is not None and isinstance(record, dict) and record.get("config") == as_recorded(known.config)

    def done(self, chosen: Sequence[Method]) -> list[tuple[Method, Path]]:
        """Those of the chosen methods that are done, with their experiments."""
        return [(method, self.experiment(method)) for method in chosen if self.is_done(method)]

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
        known = self.configured(method)
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


def encoder_table(experiment: Path) -> ComponentTable:
    """The components of an experiment's encoder."""
    from espnet_todm.report.selection_page import load_encoder

    return load_encoder(experiment)[0].component_table()


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
