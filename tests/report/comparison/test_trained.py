"""The file that stands for a training in reports."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.results import Results
from espnet_todm.report.comparison.table import gap_table, size_table
from espnet_todm.report.comparison.trained import Trained, config_of, from_experiment, read_trained, write_trained
from tests.report.comparison.conftest import a_method, write_rates

TWINS = {"full": "alone full", "small": "alone small"}


@pytest.fixture
def trained(tmp_path: Path) -> list[Trained]:
    ours = a_method("ours", seed=1, twins=TWINS, conf={"dropout_rate": float("inf")})
    found = [from_experiment(ours, write_rates(tmp_path / "ours", {"full": 20, "small": 30}))]
    for size, rate in (("full", 24), ("small", 27)):
        twin = a_method(f"alone {size}", seed=1, sizes=(size,))
        found.append(from_experiment(twin, write_rates(tmp_path / size, {size: rate})))
    return found


def test_a_report_from_files_is_that_from_experiments(trained: list[Trained], tmp_path: Path) -> None:
    chosen: list[Method] = [one.method for one in trained]
    for one in trained:
        write_trained(one, tmp_path / "results" / f"{one.method.slug}.json.gz")
    read = [read_trained(method, tmp_path / "results" / f"{method.slug}.json.gz") for method in chosen]
    assert all(one.experiment is None for one in read)
    for table in (size_table, gap_table):
        assert table(Results(chosen, read)).rows == table(Results(chosen, trained)).rows


def test_a_file_holds_what_training_chose_and_the_same_bytes_for_the_same_training(
    trained: list[Trained], tmp_path: Path
) -> None:
    ours = replace(trained[0], kept={"small": {"feed_forward": [3, 0, 2]}})
    digits = replace(ours.training, model_steps=ours.training.model_steps + 3e-10)  # a sum in another order
    for name, one in (("a.json.gz", ours), ("b.json.gz", replace(ours, training=digits))):
        write_trained(one, tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert read_trained(ours.method, tmp_path / "a.json.gz").kept == ours.kept
    assert config_of(tmp_path / "a.json.gz")["encoder_conf"] == {"sizes": {"small": 0.3}, "dropout_rate": None}
    assert config_of(tmp_path / "none.json.gz") is None


def test_what_is_no_such_file_is_one_line(trained: list[Trained], tmp_path: Path) -> None:
    path, method = tmp_path / "ours.json.gz", trained[0].method
    write_trained(trained[0], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"ours\.json\.gz: damaged \(EOFError: .*\); remove it"):
        read_trained(method, path)
    path.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(UserError, match=r"ours\.json\.gz: not the results of a training in the format"):
        config_of(path)
    stored = json.loads(gzip.decompress(whole))
    del stored["scores"]["test"]["edits"]
    path.write_bytes(gzip.compress(json.dumps(stored).encode()))
    with pytest.raises(UserError, match=r"ours\.json\.gz: not the results of a training \(KeyError\('edits'\)\)"):
        read_trained(method, path)
