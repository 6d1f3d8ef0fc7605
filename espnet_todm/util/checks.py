"""Options of configurations and commands, checked with one message for all of a kind."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Literal, Optional, Union

from espnet_todm.errors import UserError

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_type(key: str, value: Any, annotation: Any) -> None:
    """Raise UserError unless ``value`` is what ``annotation`` says: one of KINDS, a Literal, or Optional of such. Any other
    annotation allows every value."""
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) is Union else (annotation,)
    if value is None and type(None) in kinds:
        return
    kind, *others = [kind for kind in kinds if kind is not type(None)]
    if others:
        return
    if typing.get_origin(kind) is Literal:
        check_choice(key, value, typing.get_args(kind))
    if kind in KINDS and not _is(value, kind):
        raise UserError(f"{key}: {value!r} must be {KINDS[kind]}")


def _is(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, int) and value in (0, 1)
    return is_number(value) if kind is float else isinstance(value, kind) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(key: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise UserError unless ``value`` is one of those that are allowed."""
    choices = list(allowed)
    if value not in choices:
        raise UserError(f"{key}: {value!r} is unknown; allowed: {', '.join(map(str, choices))}")


def check_number(
    key: str,
    value: Any,
    *,
    at_least: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
    at_most: Optional[float] = None,
    whole: bool = False,
) -> None:
    """Raise UserError unless ``value`` is a finite (``whole``) number within the bounds that are given."""
    kind = int if whole else (int, float)
    good = is_number(value) and isinstance(value, kind) and math.isfinite(value)
    good = good and (at_least is None or value >= at_least) and (above is None or value > above)
    good = good and (at_most is None or value <= at_most) and (below is None or value < below)
    if good:
        return
    bounds = [(">=", at_least), (">", above), ("<=", at_most), ("<", below)]
    allowed = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    noun = "whole number" if whole else "finite number"
    hint = " (YAML reads 1e-3 as text: write 0.001)" if isinstance(value, str) else ""
    raise UserError(f"{key}: {value!r} is not allowed, it must be a {noun} {allowed}".rstrip() + hint)


def check_by_name(key: str, values: Any, names: Iterable[str], what: str, **bounds: Any) -> dict[str, float]:
    """Return the mapping ``values`` of names to numbers. Raise UserError unless it is one, all of its names are among
    ``names``, each of which is a ``what``, and its numbers are within the bounds of :func:`check_number`."""
    allowed = list(names)
    if not isinstance(values, Mapping):
        raise UserError(f"{key}: {values!r} must map sizes to numbers; sizes: {', '.join(allowed)}")
    for name, value in values.items():
        if name not in allowed:
            raise UserError(f"{key}: {name!r} is no {what}; allowed: {', '.join(allowed)}")
        check_number(f"{key}.{name}", value, **bounds)
    return dict(values)


def check_length(key: str, planned: Optional[int], instead: str) -> int:
    """Return the number of steps of the run. Raise UserError if it is unknown, for an option that is a share of the run."""
    if planned is None:
        raise UserError(f"{key}: the length of the run is not known beforehand; {instead}")
    return planned


def accepted_keys(cls: type) -> Optional[list[str]]:
    """Names that ``cls(...)`` takes; None: any, because a class with ``**options`` looks at them itself."""
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]


def build(cls: type, conf: Mapping[str, Any], where: str, *arguments: Any, **defaults: Any) -> Any:
    """``cls(*arguments, **defaults, **conf)``, with a UserError that names an unknown key of ``conf``."""
    known = accepted_keys(cls)
    allowed = (known or [])[len(arguments) :]
    if not isinstance(conf, Mapping):
        raise UserError(f"{where}: {conf!r} must be a mapping of {', '.join(allowed) or 'options'}")
    for key in conf:
        if known is not None and key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    return cls(*arguments, **{**defaults, **conf})


def refusal(check: Callable[[], Any]) -> list[str]:
    """What this check refuses: one line, or none."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []
