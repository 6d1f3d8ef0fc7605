"""Parse the options of ESPnet's ASR training and check them before anything is built. Errors are one line.

ESPnet does not check the values of a YAML file: neither its own lists of choices nor the keys of a part's ``*_conf``. It
fails later, inside the part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Optional
from unittest import mock

from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.espnet.faults import faults_told
from espnet_todm.espnet.parts import check_types
from espnet_todm.espnet.registry import register
from espnet_todm.util.checks import accepted_keys

ONE_CYCLE = "one_cycle_linear"
_WITH_OTHER_KEYS = (
    " An option was added or left out: resume with those it was trained with, or begin anew from its weights with"
    " --init_param <its folder>/latest.pth:::subnet_trainer and another --output_dir"
)
# Parts in which a number written as text is an error. In other parts text such as "16k" may be intended.
NUMERIC = ("encoder", "model", "subnet_trainer", "iterator", "nonspeech", "optim", "scheduler")


def train(arguments: Sequence[str]) -> None:
    """Run ESPnet's training command with this package's classes, checks and one-line errors. Raises UserError."""
    register()
    from espnet2.tasks.asr import ASRTask

    options = parse_training(arguments)
    if options.print_config:
        print_config(options)
        return
    with checkpoint_errors(), faults_told():
        ASRTask.main(args=options)


def parse_training(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``asr_train``. Its ``--config`` may have bases (config_inheritance.py).

    Raises UserError for an unknown option, part or key, and for numbers written as text.
    """
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes
    from espnet2.tasks.asr import ASRTask

    parser = ASRTask.get_parser()
    parser.error = refuse
    options = _parse(parser, arguments)
    for name in () if options.print_config else options.required:
        if getattr(options, name) is None:
            raise UserError(f"--{name} is required")
    parts: list[tuple[str, Mapping[str, Optional[type]], bool]] = [
        (choices.name, choices.classes, choices.optional) for choices in ASRTask.class_choices_list
    ]
    for name, classes, optional in (*parts, ("optim", optim_classes, False), ("scheduler", scheduler_classes, True)):
        conf = getattr(options, f"{name}_conf")
        check_part(name, getattr(options, name), conf, classes, optional)
        setattr(options, f"{name}_conf", conf or {})  # a key without a value is null in YAML
    return options


def print_config(options: argparse.Namespace) -> None:
    """Print a configuration with the defaults of the chosen classes, as ESPnet's ``--print_config`` does."""
    from espnet2.tasks.asr import ASRTask

    # ESPnet would parse the command line again, without support for ``base``.
    parsed = mock.Mock(parse_known_args=lambda: (argparse.Namespace(**vars(options)), []))
    with mock.patch.object(ASRTask, "get_parser", lambda: parsed):
        ASRTask.print_config(sys.stdout)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """As in ESPnet, the config's values become the parser's defaults. The config may have bases."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.error = refuse  # type: ignore[method-assign]
    given, others = first.parse_known_args(list(arguments))
    if given.config is None:
        return parser.parse_args(others)
    config = read_config(given.config)
    known = {action.dest for action in parser._actions}
    for key in config:
        if key not in known:
            raise UserError(f"unrecognized arguments: {key} (from {given.config})")
    parser.set_defaults(**config)
    options = parser.parse_args(others)
    options.config = given.config  # set after parsing, so that ESPnet does not read the file again
    return options


def check_part(
    name: str, value: Optional[str], conf: Any, classes: Mapping[str, Optional[type]], optional: bool = True
) -> None:
    """Check the class ``name: value`` and its options ``name_conf: conf``. Raises UserError."""
    chosen = str(value).lower()
    if optional and (value is None or chosen in ("none", "null", "nil")):
        return
    if chosen not in classes:
        if chosen == ONE_CYCLE:
            raise UserError(_instead_of_one_cycle(conf or {}))
        raise UserError(f"{name}: {value!r} is unknown; allowed: {', '.join(map(str, classes))}")
    if not isinstance(conf or {}, Mapping):
        raise UserError(f"{name}_conf: {conf!r} must be a mapping of options")
    cls = classes[chosen]
    allowed = accepted_keys(cls) if cls is not None else None
    for key, entry in (conf or {}).items():
        if allowed is not None and key not in allowed:
            raise UserError(f"{name}_conf: unknown key {key!r} for {value}; allowed: {', '.join(allowed)}")
        if name in NUMERIC and isinstance(entry, str) and _number(entry) is not None:
            raise UserError(f"{name}_conf.{key}: {entry!r} is text to YAML, not a number; write {_number(entry)}")
    if cls is not None and name in NUMERIC:
        check_types(f"{name}_conf", conf or {}, cls)


def _instead_of_one_cycle(conf: Mapping[str, Any]) -> str:
    """Error line for this package's former scheduler. It gives the equivalent options of ESPnet's scheduler."""
    total, start = conf.get("total_steps") or 100000, conf.get("start", 4e-6)
    up, down = (conf.get(f"{way}_share", 0.45) * total for way in ("up", "down"))
    steps = [1, *(round(at) + 1 for at in (up, up + down, total, 10 * total))]
    rates = [start, conf.get("peak", 4e-4), conf.get("end", start), *[conf.get("final", 1e-8)] * 2]
    return (
        f"scheduler: {ONE_CYCLE} is now ESPnet's piecewiselinearwarmuplr; for the same rates write"
        f" scheduler_conf: {{warmup_steps_list: {steps}, warmup_lr_list: {rates}}}"
    )


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Turns torch's long message for weights that do not match (``--init_param``, ``--resume``) into one line."""
    try:
        yield
    except RuntimeError as error:
        first, *details = str(error).splitlines() or [""]
        if not first.startswith("Error(s) in loading state_dict") or not details:
            raise
        what = details[0].strip()
        way_out = _WITH_OTHER_KEYS if what.startswith(("Missing key", "Unexpected key")) else ""
        shown = what if len(what) <= 200 else what[:200] + " ..."
        raise UserError(f"the checkpoint is of another model than the config: {shown}{way_out}") from error


def refuse(message: str) -> NoReturn:
    """Replaces the method ``error`` of argparse parsers. Raises UserError with the message."""
    raise UserError(message)


def _number(text: str) -> Optional[str]:
    """A number in a notation that YAML reads as a number, or None if ``text`` is not a finite number."""
    try:
        number = float(text)
    except ValueError:
        return None
    if 0 < abs(number) < 1e-6:
        digits, _, power = f"{number:e}".partition("e")
        return f"{digits.rstrip('0')}e{power}".replace(".e", ".0e")
    return f"{number:.12f}".rstrip("0").rstrip(".") if abs(number) < 1e12 else None
