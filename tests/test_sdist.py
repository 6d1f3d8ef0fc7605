"""A source distribution holds what its tests, its docs and its recipes need."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
MADE = {"__pycache__", "data", "downloads", "dump", "exp", "logs", "api"}  # by running things in a checkout


def test_every_file_of_the_checkout_is_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        there = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "constraints-k2.txt",
        "pyproject.toml",
        "CONTRIBUTING.md",
        ".ci/run",
    }
    for folder in ("benchmarks", "conf", "docs", "egs", "tests", "espnet_todm"):
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            recipe = parts[0] == "egs" and len(parts) > 2
            if path.is_file() and not (MADE - ({"data"} if not recipe else set())) & set(parts):
                wanted.add("/".join(parts))
    assert len(wanted) > 300
    assert {name for name in wanted if not name.endswith((".pyc", ".completed"))} <= there
    assert {
        name.replace(".", "/") + "/__init__.py" for name in find_packages(str(ROOT), include=["espnet_todm*"])
    } <= there


def test_no_large_file_is_part_of_the_project() -> None:
    """Data, features and weights are made or fetched; a repository keeps them for ever."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert [str(file) for file in files if file.stat().st_size > 2**20] == []
