"""What a comparison trains: methods on one base configuration, and the sizes of each method trained alone (twins)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from espnet_todm.components import FULL
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import merged, over_bases, read_yaml
from espnet_todm.report.comparison.lengths import stretched
from espnet_todm.report.comparison.twins import TwinPlan, plan_twins
from espnet_todm.util.checks import check_choice
from espnet_todm.util.files import PathLike

KEYS = ("base", "methods", "alone", "seeds", "lengths")
ALONE = (False, True, "sets", "both")
# What decides how many updates a training makes, and how much speech an update has.
SAME_UPDATES = (
    *("max_epoch", "num_iters_per_epoch", "patience", "accum_grad"),
    *("batch_type", "batch_size", "batch_bins", "fold_length", "min_batch_size", "drop_last_iter"),
    *("iterator", "iterator_conf"),
)
OWN_BATCHES = ("batch_size", "batch_bins")  # may differ where each subnet has its own part of a batch


@dataclass(frozen=True)
class Method:
    """One training.

    name: unique in the plan. config: all options. sizes: those that it trains; others are not scored.
    label: the name without the seed; seed: None for the base's; length: updates as a multiple of the base's.
    twins: size -> label of the method that trains it alone. learned_by: label of the method whose trained card says what the
    only size of this one keeps; its configuration is complete once that is known. speech: in an update, as a multiple of
    the base's.
    """

    name: str
    config: Mapping[str, Any]
    sizes: tuple[str, ...]
    label: str = ""
    seed: Optional[int] = None
    length: int = 1
    twins: Mapping[str, str] = field(default_factory=dict)
    learned_by: str = ""
    speech: float = 1.0

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_").lower()


def read_plan(path: PathLike) -> list[Method]:
    """Trainings of a plan, a YAML file with

    - ``base``: the training configuration that all share, relative to the plan, or a list of files as in a configuration,
    - ``methods``: name -> what it changes, laid over the base,
    - ``alone``: ``true`` also trains each size of the base by itself; ``sets`` trains each size of each method by itself,
      with the same components, for as many updates; ``both`` does both (see :mod:`espnet_todm.report.comparison.twins`),
    - ``seeds``: a list trains all of that with each of these seeds instead of the base's,
    - ``lengths``: a list trains all of that for each of these multiples of the base's updates (see
      :mod:`espnet_todm.report.comparison.lengths`).

    Raises UserError for an unknown or missing key, for methods that make other updates than the base, and for names that
    give one folder.
    """
    plan = read_config_of_plan(path)
    base = over_bases({"base": plan["base"]}, Path(path))
    _check_sizes(f"{path}: base", base)
    methods = []
    for name, changes in plan["methods"].items():
        if not isinstance(changes, Mapping):
            raise UserError(f"{path}: methods.{name}: {changes!r} must be a mapping of options")
        config = merged(base, changes)
        _check_sizes(f"{path}: methods.{name}", config)
        sizes = (FULL, *config["encoder_conf"]["sizes"])
        methods.append(Method(str(name), config, sizes, str(name), speech=_speech(config, base)))
    for method in methods:
        _check_updates(path, method, base)
    methods = _with_twins(methods, base, plan.get("alone", False))
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: methods.{name}: is the name of a size trained alone; choose another")
    longer = [_stretched(method, length) for length in plan.get("lengths", [1]) for method in methods]
    every = [_seeded(method, seed) for seed in plan["seeds"] for method in longer] if "seeds" in plan else longer
    _check_folders(path, every)
    return every


def _check_updates(path: PathLike, method: Method, base: Mapping[str, Any]) -> None:
    """Raises UserError if a method makes other updates than the base. A method that shares out the utterances of a batch
    among its subnets may have larger batches, if epochs have a number of updates."""
    trainer = method.config.get("subnet_trainer_conf")
    splits = isinstance(trainer, Mapping) and trainer.get("split_batch") is True and base.get("num_iters_per_epoch")
    for key in SAME_UPDATES:
        if method.config.get(key) != base.get(key) and not (splits and key in OWN_BATCHES):
            raise UserError(f"{path}: methods.{method.name}: changes {key}; all methods must make the same updates")


def _speech(config: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """How much speech an update has, as a multiple of the base's. ESPnet's other types of batches count utterances."""
    key = "batch_bins" if config.get("batch_type") in ("numel", "length") else "batch_size"
    return float(config[key] / base[key]) if base.get(key) and config.get(key) else 1.0


def _check_sizes(where: str, config: Mapping[str, Any]) -> None:
    """Raises UserError if a configuration has no sizes to compare."""
    encoder = config.get("encoder_conf")
    sizes = encoder.get("sizes") if isinstance(encoder, Mapping) else None
    if not isinstance(sizes, Mapping) or not sizes:
        raise UserError(f"{where}: encoder_conf.sizes is {sizes!r}; needed: a mapping such as {{small: 0.5}}")


def _check_folders(path: PathLike, methods: Sequence[Method]) -> None:
    """Raises UserError unless each method has a folder of its own."""
    names: dict[str, str] = {}
    for method in methods:
        other = names.setdefault(method.slug, method.name)
        if not method.slug or other != method.name:
            beside = f" as for {other!r}" if method.slug else ""
            raise UserError(
                f"{path}: {method.name!r} gives the folder {method.slug!r}{beside}; only letters a to z and digits count"
            )


def _with_twins(methods: Sequence[Method], base: Mapping[str, Any], alone: Any) -> list[Method]:
    """The methods, each with the names of its twins, and the twins behind them. Twins have the batches of the base."""
    batches = {key: base[key] for key in OWN_BATCHES if key in base}
    twins = plan_twins({method.label: {**method.config, **batches} for method in methods}, base, alone)
    return [*(replace(method, twins=twins.of[method.label]) for method in methods), *map(_alone, twins.plans)]


def _alone(twin: TwinPlan) -> Method:
    compared = {twin.size: twin.compared_with} if twin.compared_with else {}
    return Method(twin.name, twin.config, (twin.size,), twin.name, twins=compared, learned_by=twin.learned_by)


def _stretched(method: Method, length: int) -> Method:
    if length == 1:
        return method
    return replace(method, name=f"{method.name}, {length}x", config=stretched(method.config, length), length=length)


def _seeded(method: Method, seed: int) -> Method:
    return replace(method, name=f"{method.name}, seed {seed}", config={**method.config, "seed": seed}, seed=seed)


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
    check_choice(f"{file}: alone", plan.get("alone", False), ALONE)
    _check_list(file, "seeds", plan.get("seeds", [0]), lowest=None)
    _check_list(file, "lengths", plan.get("lengths", [1]), lowest=1)
    return plan


def _check_list(file: Path, key: str, values: Any, lowest: Optional[int]) -> None:
    good = isinstance(values, list) and bool(values) and all(type(value) is int for value in values)
    if not good or len(set(values)) < len(values) or (lowest is not None and min(values) < lowest):
        bound = "" if lowest is None else f" from {lowest} on"
        raise UserError(f"{file}: {key}: {values!r} is not possible; needed: a list of different whole numbers{bound}")


def choose(methods: Sequence[Method], names: Optional[Sequence[str]]) -> list[Method]:
    """The methods of these names, or labels, which stand for all seeds and lengths. None: all. Raises UserError."""
    for name in names or ():
        check_choice("--only", name, dict.fromkeys(one for method in methods for one in (method.label, method.name)))
    return [method for method in methods if names is None or {method.label, method.name} & set(names)]
