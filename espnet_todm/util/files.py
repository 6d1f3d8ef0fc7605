"""Files that are whole or absent: every output is written beside its place and moved there when complete."""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from espnet_todm.errors import UserError, one_line

PathLike = Union[str, Path]
BYTE_ORDER_MARK = "\ufeff"
_GZIP, _UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")  # the first bytes of such files
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
        # Libraries in C and Rust cite the system.
        found = next((code for code in FULL if os.strerror(code) in str(error)), None)
        if found is not None:
            return os.strerror(found)
        error = error.__cause__ or error.__context__
    return None


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 with plain line feeds, atomically. Raises UserError for what is no text."""
    content = encode(path, text)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def encode(path: PathLike, text: str) -> bytes:
    """``text``, which is for the file ``path``, as UTF-8. Raises UserError, naming both, for what is no text."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # Python reads file names of another encoding as halves of characters
        row = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
        raise UserError(f"{path}: {row!r} cannot be written as UTF-8; is a file's name in another encoding?") from None


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def json_rows(value: Any, depth: int, indent: str = "") -> str:
    """JSON with its outer ``depth`` levels indented and the rest in rows, so that differences are readable."""
    if not depth or not value or not isinstance(value, (dict, list)):
        return to_json(value)
    inner = indent + "  "
    if isinstance(value, dict):
        rows = [f"{to_json(key)}: {json_rows(one, depth - 1, inner)}" for key, one in value.items()]
    else:
        rows = [json_rows(one, depth - 1, inner) for one in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + ",".join(f"\n{inner}{row}" for row in rows) + f"\n{indent}{end}"


def to_json(value: Any, **options: Any) -> str:
    """``value`` as JSON. Numbers that are not finite become null, for JSON has none of them: most readers refuse NaN.

    options: json.dumps's ``indent`` and ``default``.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: PathLike) -> Any:
    """Read JSON. Raises UserError, naming the file, when it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None


def read_optional(path: PathLike) -> dict[str, Any]:
    """The JSON object in a file, empty when there is none. Raises UserError for anything else than an object."""
    stored = read_json(path) if Path(path).exists() else {}
    if not isinstance(stored, dict):
        raise UserError(f"{path}: holds {type(stored).__name__}, but it must be a JSON object")
    return stored


def has_mark(path: PathLike) -> bool:
    """Whether a plain file begins with UTF-8's byte order mark."""
    with open(path, "rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def read_lines(path: PathLike) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or gzip, without their ends and without byte order marks.

    Only a line feed, or a carriage return and a line feed, ends a line. What else Unicode counts as an end (U+2028, U+0085,
    a form feed) is text. Raises UserError, naming file and line, for a file that cannot be read and for any other encoding.
    """
    try:
        with Path(path).open("rb") as source:
            zipped = source.peek(2)[:2] == _GZIP
            for number, line in enumerate(gzip.GzipFile(fileobj=source) if zipped else source, 1):
                if number == 1:
                    _check_first(line, path)
                yield _decode(line, f"{path}:{number}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:  # among them what gzip raises for a file that is cut off
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None


def _check_first(line: bytes, path: PathLike) -> None:
    if line.startswith(_UTF_16) or b"\0" in line:
        raise UserError(
            f"{path}:1: UTF-16, or no text at all, but UTF-8 is expected; iconv -f UTF-16 -t UTF-8 makes it"
        )
    if b"\r" in line.rstrip() and not line.endswith(b"\n"):
        raise UserError(f"{path}:1: the lines end in carriage returns alone, but line feeds are expected")


def _decode(line: bytes, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text (byte 0x{line[error.start]:02x} at place {error.start + 1}); convert the file with "
            "iconv -f ENCODING -t UTF-8, where ENCODING is what it is written in, e.g. LATIN1"
        ) from None
    return text.rstrip("\r\n").lstrip(BYTE_ORDER_MARK)  # of any line: files may have been joined


def split_key(line: str) -> tuple[str, str]:
    """The first word of a line of a table, "" when it is blank, and the rest: after any white space, as in ESPnet."""
    key, value, *_ = (*line.split(maxsplit=1), "", "")
    return key, value.strip()


def read_table(path: PathLike) -> dict[str, str]:
    """Read a Kaldi table (``key value...`` per line) in order. Raises UserError on a double key and as ``read_lines``."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        key, value = split_key(line)
        if not key:
            continue
        if key in table:
            raise UserError(f"{path}:{number}: key {key!r} stands twice, but keys must be unique")
        table[key] = value
    return table


def write_table(path: PathLike, table: dict[str, str]) -> None:
    """Write a Kaldi table sorted by key (the order that Kaldi and ESPnet tools expect), atomically.

    Raises UserError as ``table_row``.
    """
    write_text(path, "".join(table_row(path, key, table[key]) for key in sorted(table)))


def table_row(path: PathLike, key: str, value: str) -> str:
    """A row of the Kaldi table ``path``, with its end.

    Raises UserError where a row would be read back as another: for white space in a key and a line's end in a value.
    """
    if key.split() != [key]:
        raise UserError(f"{path}: {key!r} cannot be the key of a row, because it is empty or holds white space")
    if "\n" in value or "\r" in value:
        raise UserError(f"{path}: {key}: {value!r} cannot stand in a row, because it holds a line's end")
    return f"{key} {value}".rstrip() + "\n"


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


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
