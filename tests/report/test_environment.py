"""What is said about versions, machine and sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from espnet_todm.report.environment import Environment, describe_sources
from espnet_todm.util.processor import cpu_model


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_sources_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("1\n")
    assert describe_sources(package) is None
    git(tmp_path, "init", "-q")
    assert describe_sources(package) is None, "a checkout that does not track the package says nothing about it"
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "first")
    sources = describe_sources(package)
    assert sources is not None and sources.commit == git(tmp_path, "rev-parse", "HEAD") and not sources.dirty
    assert sources.commit_date == git(tmp_path, "log", "-1", "--format=%cI")
    (tmp_path / "notes.txt").write_text("untracked files do not matter")
    assert describe_sources(package) == sources
    (package / "code.py").write_text("2\n")
    changed = describe_sources(package)
    assert changed is not None and changed.dirty


def test_environment_is_this_one() -> None:
    found = Environment(commands=("./run.sh --stage 1",))
    assert found.torch == torch.__version__ and found.espnet[0].isdigit()
    assert found.commands == ("./run.sh --stage 1",) and found.date.endswith("UTC")
    assert found.cpu == cpu_model() != ""
