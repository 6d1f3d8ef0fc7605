"""What a result was made with: versions, machine, state of the sources, commands."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

import torch

import espnet_todm
from espnet_todm.util.optional import package_version
from espnet_todm.util.processor import cpu_model


@dataclass(frozen=True)
class Sources:
    """State of the git checkout that this package runs from. dirty: tracked files differ from the commit."""

    commit: str
    commit_date: str
    dirty: bool


@dataclass(frozen=True)
class Environment:
    """Where and with what the numbers were made: by default here and now.

    sources: None when the package does not run from a git checkout; commands: as the user typed them.
    """

    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))
    python: str = sys.version.split()[0]
    espnet: str = field(default_factory=lambda: package_version("espnet") or "not installed")
    torch: str = torch.__version__
    espnet_todm: str = espnet_todm.__version__
    cpu: str = field(default_factory=cpu_model)
    gpu: Optional[str] = field(
        default_factory=lambda: torch.cuda.get_device_name() if torch.cuda.is_available() else None
    )
    sources: Optional[Sources] = field(default_factory=lambda: describe_sources(Path(espnet_todm.__file__).parent))
    commands: tuple[str, ...] = ()


def describe_sources(folder: Path) -> Optional[Sources]:
    """Commit of the checkout that tracks ``folder``, None when none does (such as a package installed from a wheel)."""
    if not _git(folder, "ls-files", "."):
        return None
    commit, date = _git(folder, "log", "-1", "--format=%H"), _git(folder, "log", "-1", "--format=%cI")
    if not commit or not date:
        return None
    return Sources(commit, date, dirty=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")))


def _git(folder: Path, *arguments: str) -> Optional[str]:
    """Output of a git command run in ``folder``; None when there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
