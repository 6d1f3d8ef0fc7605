"""The command: trains what is missing and reports what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from espnet_todm.bin.reports.compare import main
from espnet_todm.errors import UserError
from tests.report.comparison.conftest import write_rates

PLAN = {"base": "base.yaml", "methods": {"kd": {}, "plain": {"subnet_trainer_conf": {"kd_weight": 0}}}, "alone": "sets"}
BASE = {"encoder_conf": {"sizes": {"small": 0.5}}, "subnet_trainer": "kd", "grad_clip": float("inf")}
# "Trains" by copying what was prepared; the method in the file `fail` stops.
RECIPE = """#!/usr/bin/env bash
while [ $# -gt 0 ]; do [ "$1" != --asr_tag ] || tag=$2; shift; done
echo "$tag" >>calls
[ ! -f fail ] || [[ $tag != *$(cat fail) ]] || exit 1
mkdir -p "exp/$tag" && cp -r prepared/. "exp/$tag"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "run.sh").write_text(RECIPE)
    (tmp_path / "real" / "run.sh").chmod(0o755)
    (tmp_path / "run.sh").symlink_to("real/run.sh")
    write_rates(tmp_path / "prepared", {"full": 20, "small": 30})
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["--plan", "plan.yaml", "--label", "toy data", "--output", "REPORT.md"]


def test_what_is_done_is_reported_and_what_failed_is_told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        main([*ARGUMENTS, "--report_only"])
    (recipe / "fail").write_text("plain")
    with pytest.raises(UserError, match=r"1 of 4 trainings failed: plain: the recipe stopped with status 1"):
        main(ARGUMENTS)
    assert "1 of 4 trainings are not done yet." in (recipe / "REPORT.md").read_text()
    (recipe / "fail").unlink()
    main([*ARGUMENTS, "--report_only"])
    assert (recipe / "calls").read_text().split() == [
        "compare/kd",
        "compare/plain",
        "compare/alone_full",
        "compare/alone_small",
    ]
    main(ARGUMENTS)
    assert (recipe / "calls").read_text().split()[4:] == ["compare/plain"]
    text = (recipe / "REPORT.md").read_text()
    assert "not done yet" not in text and text in capsys.readouterr().out
    assert (
        "|small|plain|alone small|+0.0, +0.0|test|1|30.0|30.0|+0.0 [+0.0, +0.0]|+0.0 [+0.0, +0.0]|equal within ±0.0|"
        in text
    )


def test_results_are_kept_in_small_files_which_stand_for_their_experiments(recipe: Path) -> None:
    main([*ARGUMENTS, "--results", "results"])
    assert len(list((recipe / "results").iterdir())) == 4
    told = (recipe / "REPORT.md").read_text().partition("## Methods")[2]
    shutil.rmtree(recipe / "exp")
    main([*ARGUMENTS, "--results", "results"])
    assert len((recipe / "calls").read_text().split()) == 4
    assert (recipe / "REPORT.md").read_text().partition("## Methods")[2] == told


def test_one_method_is_run_and_shown(recipe: Path) -> None:
    main([*ARGUMENTS, "--only", "plain"])
    assert (recipe / "calls").read_text().split() == ["compare/plain"]
    assert "|kd|" not in (recipe / "REPORT.md").read_text()
    with pytest.raises(UserError, match=r"--only: 'ortho' is unknown; allowed: kd, plain, alone full, alone small"):
        main([*ARGUMENTS, "--only", "ortho"])


def test_the_recipe_must_be_in_this_folder(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe / "elsewhere").mkdir()
    monkeypatch.chdir(recipe / "elsewhere")
    with pytest.raises(UserError, match=r"--recipe: run this command in .*: experiments name their files"):
        main([*ARGUMENTS, "--recipe", "../run.sh"])


def test_a_recipe_that_is_not_there_is_named_before_anything_is_written(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"--recipe: ./walk.sh: no such script"):
        main([*ARGUMENTS, "--recipe", "./walk.sh"])
    assert not (recipe / "exp").exists()
