"""One-line errors for parts of a configuration (encoder, decoder, optimizer, ...) that cannot be built.

The errors of ESPnet's and torch's classes for a wrong value name neither the part nor the option.
"""

from __future__ import annotations

import inspect
import traceback
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional

from espnet_todm.errors import UserError, one_line
from espnet_todm.util.checks import check_type


@contextmanager
def part_errors(options: Any, forward: bool = False) -> Iterator[None]:
    """Turns an exception from the constructor of a class chosen by ``options`` into a UserError that names the part. With
    ``forward``, also an exception from the forward pass of ESPnet's classes among them."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        part = _part(error, options, forward)
        if part is None:
            raise
        raise UserError(f"{part} {_told(error)}") from error


def check_types(where: str, conf: Mapping[str, Any], cls: type) -> None:
    """Raises UserError for a value of ``conf`` whose type is not the int, float or bool that ``cls`` declares."""
    for key, value in conf.items():
        kind, default = _declared(cls).get(key, (Any, None))
        if kind in (int, float, bool) and not (value is None and default is None):
            check_type(f"{where}.{key}", value, kind)


def _declared(cls: type) -> dict[str, tuple[Any, Any]]:
    """Name -> (type, default) of the parameters of ``cls(...)``. Empty if the annotations cannot be resolved."""
    try:
        parameters, kinds = inspect.signature(cls).parameters, typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, ValueError, AttributeError):
        return {}
    return {name: (kinds.get(name, p.annotation), p.default) for name, p in parameters.items()}


def _part(error: Exception, options: Any, forward: bool) -> Optional[str]:
    """The part, such as ``decoder: 'transformer'``, whose ``__init__`` or ``forward`` raised the exception, or None."""
    chosen = _chosen(options)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        cls = type(frame.f_locals.get("self"))
        made = frame.f_code.co_name == "__init__"
        ran = forward and frame.f_code.co_name == "forward" and not cls.__module__.startswith("espnet_todm.")
        if cls in chosen and (made or ran):
            return chosen[cls]
    return None


def _chosen(options: Any) -> dict[type, str]:
    from espnet2.asr_transducer.joint_network import JointNetwork
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes
    from espnet2.tasks.asr import ASRTask

    chosen: dict[type, str] = {JointNetwork: "joint_net_conf:"}
    parts = [(choices.name, choices.classes) for choices in ASRTask.class_choices_list]
    for name, classes in (*parts, ("optim", optim_classes), ("scheduler", scheduler_classes)):
        value = getattr(options, name, None)
        cls = classes.get(str(value).lower())
        if isinstance(cls, type):
            chosen[cls] = f"{name}: {value!r}"
    return chosen


def _told(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"needs the package {error.name}, which is not installed"
    message = one_line(error)
    if isinstance(error, AssertionError):  # only its source line has the violated condition
        message = f"{traceback.extract_tb(error.__traceback__)[-1].line} {error}".strip()
    return f"does not work with its options: {message}"
