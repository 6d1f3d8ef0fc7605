"""What every command shares: logging, and user errors as one line and exit status 1 instead of a traceback."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Callable, NoReturn, Optional, TypeVar, get_args, get_type_hints

from espnet_todm.bin._quick_start import quick_start
from espnet_todm.errors import UserError
from espnet_todm.util.files import FULL
from espnet_todm.util.lifetime import end_with_starter

_USERS_ERRORS = (
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, *FULL),
)
quick_start()  # here, since a process that multiprocessing spawns imports the command's module, but does not run it
T = TypeVar("T")
Main = Callable[[Sequence[str]], None]
EXAMPLE = "Example: "  # begins the last part of a command's docstring


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a wrong option is a UserError (one line) instead of the usage and exit status 2.

    Texts keep their lines, and of a description that is a command's docstring the example comes after the options.
    """

    def __init__(self, description: Optional[str] = None, **options: Any) -> None:
        told, mark, example = (description or "").partition(EXAMPLE)
        texts = {"description": told.strip(), "epilog": (mark + example).strip()}
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options, **texts})

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def calling(self, function: Callable[..., Any]) -> Main:
        """The ``main`` of a command that only calls ``function``, with the options as keyword arguments."""

        def main(arguments: Sequence[str]) -> None:
            function(**vars(self.parse_args(arguments)))

        return main


def add_fields(parser: argparse._ActionsContainer, cls: Any, helps: Mapping[str, str]) -> None:
    """An option for each field of a dataclass that ``helps`` names, of the field's type and with its default."""
    kinds = get_type_hints(cls)
    for field in fields(cls):
        if field.name in helps:
            kind = next((one for one in (int, float) if one in (kinds[field.name], *get_args(kinds[field.name]))), str)
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=helps[field.name])


def from_fields(cls: type[T], parsed: argparse.Namespace, **given: Any) -> T:
    """The dataclass of the options that were parsed for its fields, and of those that are given here."""
    names = {field.name for field in fields(cls)} & vars(parsed).keys()  # type: ignore[arg-type]
    return cls(**{**{name: getattr(parsed, name) for name in names}, **given})


def run(main: Main, logs: bool = True) -> None:
    """Call ``main(sys.argv[1:])``. What a user can cause ends the process with one line on stderr, not a traceback.

    A UserError, a file that is not there or in the way, a full disk or a file that may not be written exits with status 1,
    the keyboard's Ctrl-C with 130. ``logs=False`` leaves it to ``main`` to set up logging.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # terminals of other encodings than UTF-8, as stderr does it
    if logs:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    end_with_starter()
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _USERS_ERRORS:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: stopped from the keyboard; the same command goes on", file=sys.stderr)
        sys.exit(130)
