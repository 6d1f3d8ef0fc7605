"""egs/mini/compare.sh: a corpus of its own, workers, and what they are told. Its commands are stubs here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.recipes.conftest import ROOT, Recipe

STUB = """#!/usr/bin/env bash
printf '%s: %s\\n' "$PWD" "$*" >>"$CALLS"
[ ! -f "$CALLS.fail" ] || [[ $* != *bin.compare* ]] || { echo "error: no luck"; exit 1; }
"""


@pytest.fixture
def mini(tmp_path: Path) -> Recipe:
    """The recipe with a python that only notes how it was called."""
    recipe = Recipe(tmp_path / "checkout", "mini")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STUB)
    (tmp_path / "bin" / "python").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{recipe.environment['PATH']}"
    recipe.environment = {**recipe.environment, "PATH": path, "CALLS": str(tmp_path / "calls")}
    return recipe


def compare(mini: Recipe, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["./compare.sh", *options]
    return subprocess.run(command, cwd=mini.folder, env=mini.environment, capture_output=True, text=True, check=False)


def calls(mini: Recipe) -> list[tuple[str, str]]:
    """(folder, arguments) of every call of python."""
    lines = Path(mini.environment["CALLS"]).read_text().splitlines()
    return [(folder, rest) for folder, _, rest in (line.partition(": ") for line in lines)]


def test_the_corpus_is_its_own_and_the_workers_share_a_plan(mini: Recipe) -> None:
    ended = compare(
        mini, "--workers", "2", "--plan", "conf/ablation.yaml", "--output", "ABLATION.md", "--", "--nj", "1"
    )
    assert ended.returncode == 0, ended.stderr
    there = mini.folder / "exp/large/egs/mini"
    assert {folder for folder, _ in calls(mini)} == {str(there)}
    data = [rest for _, rest in calls(mini) if "bin.compare" not in rest]
    assert data[0].startswith("local/make_mini_corpus.py --output downloads") and "--test_minutes 48" in data[0]
    assert any("bin.collect_stats" in rest for rest in data) and not any("asr_train " in rest for rest in data)
    workers = [rest for _, rest in calls(mini) if "bin.compare" in rest]
    assert len(workers) == 2 and workers[0] == workers[1]
    assert "--plan conf/ablation.yaml --folder ablation" in workers[0]
    assert workers[0].endswith(f"--output {mini.folder}/ABLATION.md -- --cpu_processes 1 --nj 1")
    for name in ("run.sh", "path.sh", "cmd.sh", "conf", "local", "../common/recipe.sh", "../../conf/train/kd.yaml"):
        assert (there / name).exists(), name
    assert compare(mini, "--plan", "conf/ablation.yaml").returncode == 0
    assert [rest for _, rest in calls(mini) if "bin.compare" not in rest] == data  # made once
    other = compare(mini, "--corpus_args", "--train_minutes 9")
    assert other.returncode == 1 and "exp/large has a corpus of '--train_minutes 150 " in other.stderr
    assert {path.name for path in mini.folder.iterdir()} & {"data", "dump", "logs", "downloads"} == set()


def test_a_report_trains_nothing_and_a_failure_is_told(mini: Recipe) -> None:
    options = ("--only", "uniform", "--results", "COMPARISON/results")
    assert compare(mini, "--report_only", "true", *options).returncode == 0
    ((_, rest),) = calls(mini)
    results = f"{mini.folder}/COMPARISON/results"
    assert rest.endswith(f"--output {mini.folder}/COMPARISON.md --only uniform --results {results} --report_only")
    Path(mini.environment["CALLS"] + ".fail").touch()
    ended = compare(mini)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["error: no luck", "error: a worker stopped; the report has what is done"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--worker", "2"), "option --worker is unknown; there are: plan output"),
        (("--workers",), "option --workers needs a value"),
        (("--workers", "two"), "--workers: 'two', but a whole number"),
        (("--work", "../x"), "--work: '../x', but a name"),
        (("--report_only", "yes"), "--report_only: 'yes', but true or false"),
    ],
)
def test_wrong_options_are_named(mini: Recipe, options: tuple[str, ...], words: str) -> None:
    ended = compare(mini, *options)
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: {words}")


def test_help_names_every_option(mini: Recipe) -> None:
    printed = compare(mini, "--help").stdout
    assert "Example: ./compare.sh" in printed
    assert all(f"--{name}" in printed for name in ("plan", "output", "workers", "only", "report_only", "corpus_args"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    command = ["shellcheck", "-x", "compare.sh"]
    found = subprocess.run(command, cwd=ROOT / "egs/mini", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
