"""Tables out of the JSON that other commands leave in an experiment: latency, parity, search.

A file holds a list of records, objects with a few plain values each, by itself or under a key. What is not plain is
left to those who open the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from espnet_todm.errors import UserError
from espnet_todm.files import PathLike, read_json
from espnet_todm.report.tables import Table

LISTS = ("rows", "steps", "checks", "front", "pareto", "trials")
"""Keys under which a file may hold its records, the first that it has."""

_COLUMNS: dict[str, tuple[str, float, str]] = {
    "rtf": ("RTF", 1.0, ".4f"),
    "p50": ("p50 (ms)", 1.0, ".1f"),
    "p95": ("p95 (ms)", 1.0, ".1f"),
    "p50_ms": ("p50 (ms)", 1.0, ".1f"),
    "p95_ms": ("p95 (ms)", 1.0, ".1f"),
    "peak_mib": ("peak memory (MiB)", 1.0, ".0f"),
    "file_bytes": ("file (MB)", 1e-6, ".3f"),
    "bytes": ("file (MB)", 1e-6, ".3f"),
    "params": ("params (M)", 1e-6, ".3f"),
    "flops": ("GFLOPs per s of speech", 1e-9, ".3f"),
    "flops_per_second": ("GFLOPs per s of speech", 1e-9, ".3f"),
    "wer": ("WER (%)", 1.0, ".2f"),
    "ok": ("passed", 1.0, ""),
    "passed": ("passed", 1.0, ""),
}
"""Key of a record -> name of the column, unit and digits. Other keys are columns under their own names."""

_PLAIN = (str, int, float, bool)


def records_table(path: PathLike) -> Optional[Table]:
    """The records of a file, a column for each key that has a plain value in one of them, the first seen first.

    None when there is no such file, or no record in it. Raises UserError when the file is no JSON of this kind.
    """
    if not Path(path).is_file():
        return None
    rows = _records(read_json(path), path)
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, _PLAIN)))
    if not keys:
        return None
    header = [_COLUMNS[key][0] if key in _COLUMNS else key.replace("_", " ") for key in keys]
    return Table(header, [[_cell(key, row.get(key)) for key in keys] for row in rows])


def _records(stored: Any, path: PathLike) -> Sequence[Mapping[str, Any]]:
    """The list itself, or the one under the first of ``LISTS`` that the object has."""
    rows: Union[Any, None] = stored
    if isinstance(stored, Mapping):
        rows = next((stored[key] for key in LISTS if isinstance(stored.get(key), list)), None)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"{path}: must hold a list of objects, by itself or under one of {', '.join(LISTS)}")
    return rows


def _cell(key: str, value: Any) -> str:
    """A plain value in the unit of its column; nothing for any other."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        _, unit, digits = _COLUMNS.get(key, ("", 1.0, "g" if isinstance(value, float) else ""))
        return format(value * unit if digits and digits != "g" else value, digits or "")
    return value if isinstance(value, str) else ""
