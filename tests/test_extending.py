"""docs/extending.md is followed to the letter, section by section, in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
# Section -> new files, changed files and added lines that a thing of this kind may take at most.
LIMITS = {
    "A selection": (1, 1, 1),
    "An encoder option": (0, 1, 3),
    "An encoder": (1, 3, 4),
    "An export format": (1, 1, 1),
}
PACKAGES = {"An export format": ("onnx", "onnxruntime", "sherpa_onnx", "kaldi_native_fbank")}  # that a check needs


def sections() -> dict[str, list[tuple[str, str]]]:
    """Heading -> its blocks: (language, text)."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    blocks = [re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for text in parts[1::2]]
    return dict(zip(parts[::2], blocks))


def first_line(text: str, begin: str) -> str:
    """What follows ``begin`` in the first line, "" where it does not begin so."""
    line = text.partition("\n")[0]
    return line[len(begin) :].strip() if line.startswith(begin) else ""


def hunks(diff: str) -> list[tuple[str, str, str]]:
    """(file, text that is there, text in its place) of each hunk."""
    found = []
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        head, *rest = re.split(r"^@@.*\n", part, flags=re.MULTILINE)
        name = re.search(r"^\+\+\+ b/(\S+)", head, re.MULTILINE)
        assert name is not None, head
        for hunk in rest:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
            found.append((name[1], before, after))
    return found


def follow(blocks: list[tuple[str, str]], folder: Path) -> list[str]:
    """Write the files and make the changes in ``folder``; returns the checks."""
    checks = []
    for language, text in blocks:
        new = first_line(text, "# file:")
        if new:
            assert not (folder / new).exists(), new
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            (folder / new).write_text(text.partition("\n")[2], encoding="utf-8")
        for name, before, after in hunks(text) if language == "diff" else []:
            there = (folder / name).read_text(encoding="utf-8")
            assert there.count(before) == 1, f"{name} has not, or more than once:\n{before}"
            (folder / name).write_text(there.replace(before, after), encoding="utf-8")
        if text.startswith("# check\n"):
            checks.append(text)
    return checks


@pytest.mark.parametrize("section", sections())
def test_a_section_works_as_it_stands(section: str, tmp_path: Path) -> None:
    for package in PACKAGES.get(section, ()):
        pytest.importorskip(package)
    for part in ("espnet_todm", "tests", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    checks = follow(sections()[section], tmp_path)
    assert checks, "a section needs a block that begins with # check"
    for check in checks:
        done = subprocess.run(
            [sys.executable, "-c", check],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("section", sections())
def test_a_section_touches_no_more_than_it_may(section: str) -> None:
    blocks = sections()[section]
    new = [text for _, text in blocks if first_line(text, "# file:")]
    changes = [hunk for language, text in blocks if language == "diff" for hunk in hunks(text)]
    added = sum(len(after.splitlines()) - len(before.splitlines()) for _, before, after in changes)
    taken = len(new), len({name for name, _, _ in changes}), added
    assert all(count <= limit for count, limit in zip(taken, LIMITS[section])), f"{section}: {taken}"
