"""Files that are whole or absent: every output is written beside its place and moved there when complete."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, TextIO, Union, cast

from espnet_todm.errors import UserError, one_line

PathLike = Union[str, Path]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, quota used up, larger than a file may be


def make_folder(path: PathLike) -> Path:
    """Make a folder and those above it, where they are missing. Raises UserError where a file or a dangling link is in the
    way."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        block = next(one for one in (folder, *folder.parents) if os.path.lexists(one) and not one.is_dir())
        what = f"a link to {os.readlink(block)}, which is not there" if block.is_symlink() else "a file"
        raise UserError(f"{block}: is {what}, but must be a folder; remove it or give another") from None
    return folder


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error nothing is left.

    Raises UserError where a folder stands there, and when the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target}: is a folder, but must be a file; remove it or give another")
    make_folder(target.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _full_disk_told(target):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces the folder ``path`` as a whole. Where ``path`` is a
    link to a folder, that folder is replaced.

    Raises UserError where a file or a dangling link stands there, and when the disk is full.
    """
    target = Path(path)
    if os.path.lexists(target):
        target = make_folder(target).resolve() if target.is_symlink() else make_folder(target)
    make_folder(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        with _full_disk_told(target):
            yield temporary
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _full_disk_told(target: Path) -> Iterator[None]:
    """Libraries tell of a full disk in their own exceptions, and none of them names the file."""
    try:
        yield
    except Exception as error:
        reason = None if isinstance(error, UserError) else _full_disk(error)
        if reason is None:
            raise
        raise UserError(f"{target}: cannot be written: {reason}; what stood there before is whole") from error


def _full_disk(error: Optional[BaseException]) -> Optional[str]:
    """What the system says of a full disk or quota, where one is behind this error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        found = next(
            (code for code in FULL if os.strerror(code) in str(error)), None
        )  # as libraries in C and Rust cite it
        if found is not None:
            return os.strerror(found)
        error = error.__cause__ or error.__context__
    return None


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: PathLike) -> Any:
    """Read JSON. Raises UserError, naming the file, when it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None


def read_table(path: PathLike) -> dict[str, str]:
    """Read a Kaldi table (``key value...`` per line, UTF-8) in order. Raises UserError on a missing file or double key."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    table: dict[str, str] = {}
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            key, _, value = line.strip().partition(" ")
            if not key:
                continue
            if key in table:
                raise UserError(f"{source}:{number}: key {key!r} stands twice, but keys must be unique")
            table[key] = value.strip()
    return table


def write_table(path: PathLike, table: dict[str, str]) -> None:
    """Write a Kaldi table sorted by key (the order that Kaldi and ESPnet tools expect), atomically."""
    write_text(path, "".join(f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table)))


def open_text(path: PathLike) -> TextIO:
    """Open a UTF-8 file for reading, plain or ``.gz``."""
    if Path(path).suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return Path(path).open(encoding="utf-8")


def hash_file(path: PathLike) -> str:
    """SHA-256 of a file. Raises UserError when there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    digest = hashlib.sha256()
    with Path(path).open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@contextmanager
def damage_told(path: PathLike, advice: str) -> Iterator[None]:
    """What libraries raise at a damaged or cut-off file becomes one line that names it and ends with ``advice``.

    Raises UserError. Errors of the system (a missing file, no permission) name their file already and pass.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {one_line(error, 100)}); {advice}") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def link(path: PathLike, home: PathLike) -> str:
    """The path as a page in the folder ``home`` links it."""
    return Path(os.path.relpath(Path(path).resolve(), Path(home).resolve())).as_posix()
