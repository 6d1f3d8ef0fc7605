"""Trainings of a plan run once, go on after a failure or a kill, and are shared among workers."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from espnet_todm.errors import UserError
from espnet_todm.report.comparison import runs as module
from espnet_todm.report.comparison.plan import Method, read_plan
from espnet_todm.report.comparison.runs import Runs, train_and_score
from espnet_todm.report.comparison.trained import Trained, write_trained
from espnet_todm.report.comparison.training import Training
from espnet_todm.util.child import child_environment
from espnet_todm.util.stage_marker import Busy, exclusive

BASE = {
    "encoder_conf": {"sizes": {"small": 0.5}},
    "subnet_trainer": "kd",
    "subnet_trainer_conf": {},
    "max_epoch": 3,
    "grad_clip": math.inf,
}
PLAN = {"base": "base.yaml", "methods": {"top-k": {"subnet_trainer": "top_k"}, "kd": {}}, "alone": True}
# A recipe of a few lines: notes how it was called, and fails or waits when it is told to.
RECIPE = """#!/usr/bin/env bash
printf "%s\\n" "$*" >>calls
while [ $# -gt 0 ]; do [ "$1" != --asr_tag ] || mkdir -p "exp/$2"; shift; done
[ ! -f fail ] || exit 1
while [ -f wait ]; do sleep 0.05; done
"""


@pytest.fixture
def methods(tmp_path: Path) -> list[Method]:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    (tmp_path / "run.sh").write_text(RECIPE)
    (tmp_path / "run.sh").chmod(0o755)
    return read_plan(tmp_path / "plan.yaml")


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_method_runs_once_and_goes_on_after_a_failure(methods: list[Method], tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(UserError, match=r"top-k: the recipe stopped with status 1"):
        train_and_score(methods[0], tmp_path / "run.sh", "compare", [])
    (tmp_path / "fail").unlink()
    for _ in range(2):
        found = train_and_score(methods[0], tmp_path / "run.sh", "compare", [])
        assert found == tmp_path / "exp" / "compare" / "top_k"
    first, second = calls(tmp_path)
    assert first == second
    assert "--stage 11 --stop_stage 14 --asr_config exp/compare/top_k.yaml --asr_tag compare/top_k" in first


def test_an_experiment_of_another_configuration_is_not_taken(methods: list[Method], tmp_path: Path) -> None:
    train_and_score(methods[0], tmp_path / "run.sh", "compare", [])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "max_epoch": 4}))
    with pytest.raises(UserError, match=r"another configuration"):
        train_and_score(read_plan(tmp_path / "plan.yaml")[0], tmp_path / "run.sh", "compare", [])


def test_what_is_done_is_known_whatever_the_recipes_options_were(methods: list[Method], tmp_path: Path) -> None:
    Runs(methods, tmp_path / "run.sh", "compare", ["--nj", "1"]).run(methods[:2])
    runs = Runs(methods, tmp_path / "run.sh", "compare")
    assert [method.name for method in methods if runs.is_done(method)] == ["top-k", "kd"]


def test_a_failure_stops_no_other_method(methods: list[Method], tmp_path: Path) -> None:
    runs = Runs(methods, tmp_path / "run.sh", "compare")
    (tmp_path / "fail").touch()
    with pytest.raises(
        UserError, match=r"4 of 4 trainings failed: top-k: the recipe .*; alone small: the recipe"
    ) as error:
        runs.run(methods)
    assert "\n" not in str(error.value)
    assert len(calls(tmp_path)) == 4
    with pytest.raises(UserError, match=r"^kd: the recipe stopped"):
        runs.run([methods[1]])


def test_two_workers_share_a_plan(methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.05)
    workers = [Runs(methods, tmp_path / "run.sh", "compare") for _ in range(2)]
    threads = [threading.Thread(target=worker.run, args=(methods,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(call.split("--sizes")[0].split()[-1] for call in calls(tmp_path)) == [
        "compare/alone_full",
        "compare/alone_small",
        "compare/kd",
        "compare/top_k",
    ]
    assert all(workers[0].is_done(method) for method in methods)


WORKER = """
import sys
from espnet_todm.report.comparison.plan import read_plan
from espnet_todm.report.comparison.runs import Runs
methods = read_plan("plan.yaml")
Runs(methods, "run.sh", "compare").run(methods[:1])
"""


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the system to end a dead worker's processes")
def test_a_killed_worker_gives_its_experiment_up(methods: list[Method], tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=tmp_path, env=child_environment())
    wait_until(lambda: calls(tmp_path))
    lock = tmp_path / "exp" / "compare" / "top_k.worker"
    with pytest.raises(Busy), exclusive(lock):
        pass
    worker.send_signal(signal.SIGKILL)
    worker.wait()

    def is_free() -> bool:
        try:
            with exclusive(lock):
                return True
        except Busy:
            return False

    wait_until(is_free, 5.0)  # the recipe ended with its worker, or it would wait for ever
    (tmp_path / "wait").unlink()
    runs = Runs(methods, tmp_path / "run.sh", "compare")
    runs.run(methods[:1])
    assert runs.is_done(methods[0]) and len(calls(tmp_path)) == 2


def test_a_twin_waits_for_the_method_that_chooses_its_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: list[Method]
) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "alone": "sets"}, sort_keys=False))
    methods = read_plan(tmp_path / "plan.yaml")
    twin = next(method for method in methods if method.learned_by)
    assert twin.name == "alone small of top-k"
    runs = Runs(methods, tmp_path / "run.sh", "compare")
    with pytest.raises(UserError, match=r"alone small of top-k: needs the sizes of top-k, which is not done; run that"):
        runs.run([twin])
    kept = {"small": {"feed_forward": [1, 2]}}
    learned = {**twin.config, "encoder_conf": {"sizes": kept}}
    monkeypatch.setattr(module, "chosen_there", lambda *_: kept)
    runs.run([twin, *methods[:1]])  # in the wrong order
    assert [call.split("--sizes ")[1] for call in calls(tmp_path)] == ["full small", "small"]
    assert yaml.safe_load((tmp_path / "exp/compare/alone_small_of_top_k.yaml").read_text()) == learned
    assert runs.is_done(twin)


def test_results_of_another_machine_count_as_done(tmp_path: Path, methods: list[Method]) -> None:
    """The twin of a method that was trained elsewhere has the components that were chosen there."""
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "alone": "sets"}, sort_keys=False))
    methods = read_plan(tmp_path / "plan.yaml")
    owner, twin = methods[0], next(method for method in methods if method.learned_by)
    here = Runs(methods, tmp_path / "run.sh", "compare", results=tmp_path / "results")
    training = Training(3, 0.5, 2.0, {})
    trained = Trained(owner, (), (), training, {"small": {"feed_forward": [1, 2]}})
    write_trained(trained, tmp_path / "results" / "top_k.json.gz")
    here.run([twin, owner])
    assert [call.split("--sizes ")[1] for call in calls(tmp_path)] == ["small"]
    known = here.configured(twin)
    assert known is not None and known.config["encoder_conf"] == {"sizes": trained.kept}
    (only,) = here.done([owner])
    assert only.experiment is None and only.training == training
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "max_epoch": 4}))
    changed = read_plan(tmp_path / "plan.yaml")
    assert not Runs(changed, tmp_path / "run.sh", "compare", results=tmp_path / "results").is_done(changed[0])
