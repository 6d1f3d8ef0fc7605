"""What a comparison runs: methods on one base configuration, each in an experiment of its own, resumable."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import merged, over_bases, read_yaml
from espnet_todm.util.files import PathLike, write_text
from espnet_todm.util.stage_marker import is_complete, mark_complete

KEYS = ("base", "methods", "alone", "seeds")


@dataclass(frozen=True)
class Method:
    """One training. ``config``: all options; ``sizes``: those that it trains, the others are not scored."""

    name: str
    config: Mapping[str, Any]
    sizes: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_").lower()


def read_plan(path: PathLike) -> list[Method]:
    """Methods of a plan, a YAML file with

    - ``base``: the training configuration that all share, relative to the plan, or a list of files as in a configuration,
    - ``methods``: name -> what it changes, laid over the base,
    - ``alone``: true also trains each size of the base by itself, with as many updates,
    - ``seeds``: a list trains all of that with each of these seeds instead of the base's.

    Raises UserError for an unknown or missing key, and for methods whose number of epochs differs from the base's.
    """
    plan = read_config_of_plan(path)
    base = over_bases({"base": plan["base"]}, Path(path))
    methods = []
    for name, changes in plan["methods"].items():
        if not isinstance(changes, Mapping):
            raise UserError(f"{path}: methods.{name}: {changes!r} must be a mapping of options")
        config = merged(base, changes)
        methods.append(Method(str(name), config, (FULL, *config["encoder_conf"]["sizes"])))
    if plan.get("alone"):
        for size in (FULL, *base["encoder_conf"]["sizes"]):
            single = {"subnet_trainer": "single", "subnet_trainer_conf": {"size": size}}
            rest = {key: value for key, value in base.items() if key != "subnet_trainer_conf"}
            criterion = [["valid", f"cer_ctc_{size}", "min"]]
            methods.append(Method(f"alone {size}", {**rest, **single, "best_model_criterion": criterion}, (size,)))
    for method in methods:
        for key in ("max_epoch", "num_iters_per_epoch", "batch_bins"):
            if method.config.get(key) != base.get(key):
                raise UserError(f"{path}: methods.{method.name}: changes {key}; all methods must make the same updates")
    return methods if "seeds" not in plan else [_seeded(method, seed) for seed in plan["seeds"] for method in methods]


def _seeded(method: Method, seed: int) -> Method:
    return replace(method, name=f"{method.name}, seed {seed}", config={**method.config, "seed": seed})


def read_config_of_plan(path: PathLike) -> dict[str, Any]:
    """The plan's own mapping, checked. A plan's ``base`` is not laid under it, since it is of another kind."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such plan")
    plan = read_yaml(file)
    if not isinstance(plan, dict) or not {"base", "methods"} <= plan.keys() or not isinstance(plan["methods"], dict):
        raise UserError(f"{file}: must be a mapping with base (a configuration) and methods (name: options)")
    for key in plan:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key {key!r}; allowed: {', '.join(KEYS)}")
    seeds = plan.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{file}: seeds: {seeds!r} is not possible; needed: a list of whole numbers")
    return plan


def train_and_score(method: Method, recipe: PathLike, folder: str, options: Sequence[str]) -> Path:
    """Train, extract, decode and score one method by the recipe's stages 11 to 14; returns its experiment.

    What is done already is not done again; what was killed goes on. Raises UserError when a stage fails, and when the
    experiment there was made with another configuration.
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
    done = subprocess.run(command, cwd=run_sh.parent, env=os.environ, check=False)
    if done.returncode:
        raise UserError(f"{method.name}: the recipe stopped with status {done.returncode}; see what it printed above")
    mark_complete(experiment, record)
    return experiment
