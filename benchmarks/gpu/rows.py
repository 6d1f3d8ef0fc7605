"""Results of one part: rows in a file that is kept between runs, and their tables in the output folder after every row."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import torch

from espnet_todm.util.files import make_folder, write_json, write_text
from espnet_todm.util.processor import cpu_model

Row = dict[str, Any]


class Rows:
    """Rows of measurements by name.

    ``state``: folder that is kept, so that a later run only measures what is missing. ``output``: folder for ``<part>.md``,
    written by ``page``, and ``<part>.json``.
    """

    def __init__(self, state: Path, output: Path, part: str, page: Callable[[Sequence[Row]], str]) -> None:
        self.path = make_folder(state) / f"{part}.jsonl"
        self.output, self.part, self.page = make_folder(output), part, page
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.rows: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}
        self.write()

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        """Add a row, or replace the one of this name."""
        self.rows[name] = {"name": name, **values}
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows.values()))
        self.write()

    def write(self) -> None:
        """Write the tables. Without a row there are none."""
        if self.rows:
            rows = list(self.rows.values())
            write_text(self.output / f"{self.part}.md", self.page(rows))
            write_json(self.output / f"{self.part}.json", rows)


def arguments(description: str | None, seconds: float, meaning: str, smoke: str) -> argparse.ArgumentParser:
    """The options of every part. ``meaning``: of ``--seconds``. ``smoke``: what ``--smoke`` makes small."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--state", type=Path, required=True, help="folder that is kept for the next run")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--seconds", type=float, default=seconds, help=meaning)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    return parser


def where(device: torch.device) -> str:
    """The device and the version of torch, for a row."""
    cpu = f"{cpu_model()}, {torch.get_num_threads()} thread(s)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}; torch {torch.__version__}"


def machines(rows: Sequence[Row]) -> str:
    """The line below a table: where its rows were measured."""
    return "; ".join(dict.fromkeys(row["where"] for row in rows)) + "\n"


def logger() -> logging.Logger:
    """The log of a part. Other modules only report warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    log = logging.getLogger("gpu")
    log.setLevel(logging.INFO)
    return log
