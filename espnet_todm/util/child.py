"""How this package starts Python as a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import espnet_todm


def python_module(module: str, *arguments: str) -> list[str]:
    """The command ``python -m module arguments``, by the Python that runs now."""
    return [sys.executable, "-m", module, *arguments]


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with ``changes``, in which this package is found wherever it was imported from."""
    root = str(Path(espnet_todm.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, **changes}
