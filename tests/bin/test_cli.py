"""How commands end: one line and a status for what a user can cause, a traceback for our own mistakes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from espnet_todm.bin._cli import Parser, run
from espnet_todm.errors import UserError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("key: 3, but 2 is allowed"), 1, "error: key: 3, but 2 is allowed\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "error: stopped from the keyboard; the same command goes on\n"),
    ],
)
def test_a_users_error_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: Sequence[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "bad descriptor"), ZeroDivisionError()])
def test_our_own_mistakes_keep_their_traceback(error: BaseException) -> None:
    def main(arguments: Sequence[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_a_terminal_of_another_encoding_ends_no_command() -> None:
    code = "from espnet_todm.bin._cli import run\nrun(lambda arguments: print('\\u2264 1'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\\u2264 1\n"), done.stderr


def test_wrong_options_are_a_users_error() -> None:
    parser = Parser()
    parser.add_argument("--size", type=int)
    with pytest.raises(UserError, match="--size: invalid int value: 'x'"):
        parser.parse_args(["--size", "x"])
