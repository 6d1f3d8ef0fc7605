"""What every command shares: logging, and user errors as one line and exit status 1 instead of a traceback."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Callable, NoReturn

from espnet_todm.errors import UserError

Main = Callable[[Sequence[str]], None]


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a wrong option is a UserError (one line) instead of the usage and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run(main: Main) -> None:
    """Call ``main(sys.argv[1:])``. A UserError ends the process with one line on stderr and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
