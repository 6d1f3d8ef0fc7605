"""A copy of the recipes in a temporary folder, and how to run one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Recipe:
    """``egs/<name>`` and ``conf`` copied to where a test may write, run with this interpreter."""

    def __init__(self, folder: Path, name: str) -> None:
        shutil.copytree(ROOT / "egs", folder / "egs", ignore=shutil.ignore_patterns("data", "dump", "exp", "logs"))
        shutil.copytree(ROOT / "conf", folder / "conf")
        self.folder = folder / "egs" / name
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment: Mapping[str, str] = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *options: object) -> subprocess.CompletedProcess[str]:
        command = ["./run.sh", *map(str, options)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def good(self, *options: object) -> str:
        """Run to a good end; returns everything printed."""
        ended = self.run(*options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def error(self, *options: object) -> str:
        """Run to a user's error: exit status 1 and one line, which is returned."""
        ended = self.run(*options)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and ended.stderr.splitlines()[-1] == lines[0], ended.stderr
        return lines[0]


@pytest.fixture
def librispeech(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path, "librispeech")


@pytest.fixture
def tedlium2(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path, "tedlium2")


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path, "own")
