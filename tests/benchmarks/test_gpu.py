"""``benchmarks/gpu.sh --smoke`` runs with little more than torch, and its trainings can be stopped and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from benchmarks.gpu import losses, steps
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.corpus import load, synthetic, unpack
from benchmarks.gpu.features import write_corpus
from benchmarks.gpu.models import read
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.training import Training, collapsed, edits, scaled
from benchmarks.gpu.twins import page

ROOT = Path(__file__).resolve().parents[2]
# What a GPU machine is expected to have: torch, torchaudio, numpy, scipy, PyYAML, and what these need.
EXPECTED = [
    *("torch", "torchgen", "functorch", "torchaudio", "triton", "nvidia", "numpy", "numpy.libs", "scipy", "scipy.libs"),
    *(
        "yaml",
        "_yaml",
        "typing_extensions.py",
        "sympy",
        "mpmath",
        "networkx",
        "jinja2",
        "markupsafe",
        "filelock",
        "fsspec",
    ),
]


def bare_python(folder: Path) -> Path:
    """A Python that finds only the expected packages."""
    venv.create(folder, symlinks=True)
    here, there = Path(sysconfig.get_path("purelib")), next(folder.glob("lib/python*/site-packages"))
    for name in EXPECTED:
        if (here / name).exists():
            (there / name).symlink_to(here / name)
    return folder / "bin" / "python"


@pytest.mark.recipe
def test_smoke_needs_no_other_packages(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "python")
    carried, output, state = tmp_path / "carried", tmp_path / "output", tmp_path / "state"
    pack = [sys.executable, "-m", "benchmarks.gpu.pack_packages", "--output", str(carried / "packages.zip")]
    subprocess.run(pack, cwd=ROOT, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OUT")}
    assert subprocess.run([python, "-c", "import espnet2"], env=environment, capture_output=True).returncode != 0
    command = [ROOT / "benchmarks/gpu.sh", "--smoke", "--carried", carried, "--output", output, "--state", state]
    environment["PYTHON"] = str(python)
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == {
        f"{part}.{ending}" for part in ("step_cost", "transducer_loss", "training") for ending in ("md", "json")
    }
    rows = {part: json.loads((output / f"{part}.json").read_text()) for part in ("step_cost", "training")}
    assert [(row["model"], row["method"]) for row in rows["step_cost"]] == [
        ("conformer_ctc", "kd"),
        ("conformer_rnnt", "ortho stage 1"),
        ("mh_ssm_ctc", "ortho stage 2"),
    ]
    assert all(row["factor"] > 0 and row["peak_memory_mib"]["single"] > 0 for row in rows["step_cost"])
    assert {row["updates_done"] for row in rows["training"]} == {40}
    assert "# A supernet and its sizes alone" in done.stdout


@pytest.mark.parametrize("arguments", [["--part", "x"], ["--minutes", "ten"], ["--parts", "stepts"], ["--output"]])
def test_wrong_options_are_one_line(arguments: list[str]) -> None:
    done = subprocess.run([str(ROOT / "benchmarks/gpu.sh"), *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    write_corpus(tmp_path / "features.npz", synthetic(8))
    unpack(tmp_path / "features.npz", tmp_path / "corpus")
    arguments = ["--name", "supernet", "--state", str(tmp_path), "--device", "cpu", "--batch_seconds", "6"]
    options = gpu_training.parse(arguments)
    split = load(tmp_path / "corpus", "train", options.device)
    whole, first, second = (Training("supernet", read("smoke"), 10, options) for _ in range(3))
    whole.run(split, 6)
    first.run(split, 4)
    first.save()
    second.restore()
    assert second.update == 4
    second.run(split, 2)
    state = second.model.state_dict()
    assert all(value.equal(state[name]) for name, value in whole.model.state_dict().items())
    assert second.update == whole.update == 6


def test_numbers_of_updates_follow_the_length_of_the_run() -> None:
    config = read("train")
    longer = scaled(config, 5000)
    assert longer["subnet_trainer_conf"]["warmup_steps"] == 5 * config["subnet_trainer_conf"]["warmup_steps"]
    assert longer["scheduler_conf"]["warmup_steps_list"][-1] == 5000
    assert longer["encoder_conf"] == config["encoder_conf"]


def test_greedy_text_and_its_errors() -> None:
    a, b, space = 4, 5, 2
    assert collapsed([0, a, a, 0, a, space, space, b, 0]) == "AA B"
    assert edits(["A", "B", "C"], ["A", "C", "C", "D"]) == 2
    assert edits([], ["A"]) == 1 and edits(["A", "B"], []) == 2


def test_tables_show_what_is_there(tmp_path: Path) -> None:
    base = {"updates": 80, "parameters": 10**6, "updates_of_size": 80, "where": "here"}
    tested = {"errors": [2, 1, 0], "words": [4, 4, 4]}
    curve = {"dev_wer": {10: 100.0, 20: 50.0}}
    rows = [
        {"training": "supernet", "size": "full", "updates_done": 80, **base, **curve, **tested},
        {"training": "full", "size": "full", "updates_done": 80, **base, **curve, **tested, "errors": [2, 2, 2]},
        {"training": "supernet", "size": "small", "updates_done": 20, **base, **curve},
    ]
    text = page(rows, "features.npz")
    assert "|full|1.00M|80 of 80|80|25.0 [" in text and "|-25.0 [" in text and "|-50.0%|" in text
    assert "|small|1.00M|20 of 80|80|||||" in text
    assert "|supernet: full|100.0|50.0|||||||" in text


def test_tables_say_what_failed() -> None:
    case = {"model": "conformer_ctc", "method": "kd", "utterances": 128, "seconds": 15.0, "where": "here"}
    assert "|conformer_ctc|kd|128 x 15 s|out of memory|" in steps.page([{**case, "failed": "out of memory"}])
    of = {"sizes": [8, 150, 40, 500], "joiner": False, "where": "here"}
    base = {**of, "loss": "torchaudio, full", "failed": "no CUDA kernel"}
    ours = {**of, "loss": "torch, full", "seconds": 0.002, "added_mib": 10.0}
    text = losses.page([base, ours])
    assert "|torchaudio, full|no CUDA kernel||||" in text and "|torch, full|2.00||10||" in text
    base = {**of, "loss": "torchaudio, full", "seconds": 0.004, "added_mib": 20.0, "times_as_fast": 1.0}
    assert "|torch, full|2.00|2.0|10|2.0|" in losses.page([base, {**ours, "times_as_fast": 2.0}])


def test_no_measurement_begins_after_the_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.losses", "--smoke", "--device", "cpu", "--seconds", "-1"]
    folders = ["--output", str(tmp_path / "output"), "--state", str(tmp_path / "state")]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "run again to go on" in done.stderr
    assert not list((tmp_path / "output").iterdir())


def test_rows_are_kept_and_written_at_once(tmp_path: Path) -> None:
    for expected in (1, 2):
        rows = Rows(tmp_path / "state", tmp_path / "output", "part", lambda rows: f"{len(rows)} rows")
        rows.add(f"row {expected}", {"value": expected})
        assert (tmp_path / "output/part.md").read_text() == f"{expected} rows"
    assert "row 1" in rows and json.loads((tmp_path / "output/part.json").read_text())[1] == {
        "name": "row 2",
        "value": 2,
    }
