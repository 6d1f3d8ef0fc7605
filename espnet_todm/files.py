"""Files that are whole or absent: every output is written beside its place and moved there when complete."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, Union, cast

from espnet_todm.errors import UserError

PathLike = Union[str, Path]


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error nothing is left."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces the folder ``path`` as a whole."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def link(path: PathLike, home: PathLike) -> str:
    """The path as a page in the folder ``home`` links it."""
    return Path(os.path.relpath(Path(path).resolve(), Path(home).resolve())).as_posix()
