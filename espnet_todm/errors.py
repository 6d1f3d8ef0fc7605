"""The exception for errors that a user can cause (a wrong key, a missing file), and helpers for its one-line message."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

# What libraries raise where a file's content is not what they wrote.
DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError),
    *(zlib.error, zipfile.BadZipFile, gzip.BadGzipFile),
)


class UserError(ValueError):
    """An error that the user can correct. The message is one line: the key, the value, and the allowed values."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another exception in one line of bounded length, for the message of a UserError."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else words[:limit] + " ..."


def last_line(text: str, limit: int = 300) -> str:
    """The last line of a program's output that is not blank, which usually gives the error. "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else ""


@contextmanager
def damage_told(path: Union[str, Path], advice: str) -> Iterator[None]:
    """What libraries raise at a damaged or cut-off file becomes one line that names it and ends with ``advice``.

    Raises UserError. Errors of the system (a missing file, no permission) name their file already and pass.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {one_line(error, 100)}); {advice}") from error
