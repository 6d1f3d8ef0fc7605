"""Configuration inheritance: ``base`` names the files with the options that a training configuration does not set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, Union

import yaml

from espnet_todm.errors import UserError, one_line
from espnet_todm.util.files import read_lines

KEY = "base"
CONFIG = "config.yaml"  # file to which ESPnet's training writes its options
# File of an older release -> its present path.
MOVED = {
    "common/conf/todm.yaml": "conf/train/todm.yaml",
    "common/conf/rnnt.yaml": "conf/train/rnnt.yaml",
    "common/conf/ortho.yaml": "conf/train/ortho_softmax.yaml",
}


def read_config(path: Union[str, Path], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML configuration with its bases, see :func:`over_bases`. ``above``: the files whose bases led to this one.

    Raises UserError for a file that is missing, not YAML or not a mapping, and as :func:`over_bases` does.
    """
    path, shown = Path(path), os.path.normpath(path)
    named = f" (named as {KEY} by {above[-1].name})" if above else ""
    if path.resolve() in above:
        raise UserError(f"{shown}: {KEY}: leads back to this file{named}")
    if not path.is_file():
        moved = MOVED.get("/".join(path.parts[-3:]))
        raise UserError(f"{shown}: no such file{named}" + (f"; it is now {moved} of the checkout" if moved else ""))
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{shown}: must be a mapping of options{named}")
    return over_bases(config, path, above)


def over_bases(config: Mapping[str, Any], path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge ``config`` over its ``base``: one file, or a list of files of which each is merged over the previous one.

    ``path``: the file of ``config``; names of bases are relative to it. A base may have bases of its own.
    Raises UserError for a base that is not a file, for circular bases, and for two bases with different values for a key
    that ``config`` does not set.
    """
    changes = {key: value for key, value in config.items() if key != KEY}
    if KEY not in config:
        return changes
    names = config[KEY] if isinstance(config[KEY], list) else [config[KEY]]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {KEY}: {config[KEY]!r} must be the path of a YAML file, or a list of paths")
    bases = [_left_open(read_config(path.parent / name, (*above, path.resolve())), changes) for name in names]
    for (one, first), (other, second) in combinations(zip(names, bases), 2):
        for key, value, against in _contradictions(first, second, changes):
            raise UserError(
                f"{path}: {KEY}: {one} has {key}: {value!r}, {other} has {against!r}; state {key} in this file"
            )
    return reduce(merged, [*bases, changes])


def _left_open(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` without the keys that ``changes`` replaces. Bases are compared only in the remaining keys."""
    gone = _exchanged(base, changes) | {key for key, value in changes.items() if not isinstance(value, Mapping)}
    return {key: value for key, value in base.items() if key not in gone}


def _contradictions(
    one: Mapping[str, Any], other: Mapping[str, Any], changes: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys with different values in ``one`` and ``other`` that ``changes`` does not set: (key with dots, value, value)."""
    for key in (key for key in one if key in other):
        first, second, own = one[key], other[key], changes.get(key, {})
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            if isinstance(own, Mapping):
                yield from _contradictions(first, second, own, f"{prefix}{key}.")
        elif key not in changes and first != second:
            yield f"{prefix}{key}", first, second


def read_yaml(path: Path) -> Any:
    """Read a YAML file. Raises UserError if it is not valid YAML or not UTF-8 text."""
    try:
        return yaml.safe_load("\n".join(read_lines(path)))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {one_line(error)}") from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``changes`` over ``base``: mappings key by key, other values replaced.

    If ``changes`` replaces a part (``optim: adam`` over ``optim: scaledadam``), the base's options of the part
    (``optim_conf``) are dropped. They are kept for ``todm_conformer`` over ``conformer``, which accepts ESPnet's options.
    """
    exchanged = _exchanged(base, changes)
    result = {key: value for key, value in base.items() if key not in exchanged}
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _exchanged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """The option keys (``optim_conf``) of the parts (``optim``) of ``base`` that ``changes`` replaces."""
    return {
        f"{key}_conf"
        for key, value in changes.items()
        if key in base and base[key] != value and value != f"todm_{base[key]}"
    }


def best_model(config: Mapping[str, Any]) -> str:
    """File name of the best checkpoint by the first criterion on the validation set, or else by the first criterion."""
    criteria = config.get("best_model_criterion") or [["valid", "loss", "min"]]
    phase, key = next(((c[0], c[1]) for c in criteria if c[0] == "valid"), criteria[0][:2])
    return f"{phase}.{key}.best.pth"
