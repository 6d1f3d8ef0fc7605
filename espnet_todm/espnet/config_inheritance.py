"""Training configurations that state only what they change: ``base: common.yaml`` names the file that has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import yaml

from espnet_todm.errors import UserError, one_line
from espnet_todm.util.files import read_lines

KEY = "base"
CONFIG = "config.yaml"  # where ESPnet's training writes what it was configured with


def read_config(path: Union[str, Path], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML configuration laid over its base, if it names one; the base's path is relative to the file that names it.

    Mappings are merged key by key, anything else replaces what the base says. A base may have a base of its own.

    Raises UserError for a file that is missing, no YAML or no mapping, and for bases that go round in a circle.
    """
    path = Path(path)
    if path.resolve() in above:
        raise UserError(f"{path}: {KEY}: leads back to this file")
    if not path.is_file():
        named = f" (named as {KEY} by {above[-1].name})" if above else ""
        raise UserError(f"{path}: no such file{named}")
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a mapping of options")
    if KEY not in config:
        return config
    base = config.pop(KEY)
    if not isinstance(base, str):
        raise UserError(f"{path}: {KEY}: {base!r} must be the path of a YAML file")
    return merged(read_config(path.parent / base, (*above, path.resolve())), config)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises UserError when it is none, or no UTF-8 text."""
    try:
        return yaml.safe_load("\n".join(read_lines(path)))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {one_line(error)}") from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``: mappings key by key, anything else replaced.

    Where a part is exchanged (``optim: adam`` over ``optim: scaledadam``), the base's options of it (``optim_conf``) go too,
    but not where ``encoder: todm_conformer`` stands over ``conformer``: a supernet's options are ESPnet's and more.
    """
    exchanged = {
        f"{key}_conf"
        for key, value in changes.items()
        if key in base and base[key] != value and value != f"todm_{base[key]}"
    }
    result = {key: value for key, value in base.items() if key not in exchanged}
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def best_model(config: Mapping[str, Any]) -> str:
    """Name of the checkpoint that was best by the configuration's first criterion on the validation set."""
    criteria = config.get("best_model_criterion") or [["valid", "loss", "min"]]
    phase, key = next(((c[0], c[1]) for c in criteria if c[0] == "valid"), criteria[0][:2])
    return f"{phase}.{key}.best.pth"
