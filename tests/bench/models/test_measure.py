"""Measurements of exported models. No test looks at a clock: times are made up, and processes only answer."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from espnet_todm.bin.latency import main
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.bench.models import worker
from espnet_todm.bench.models.inputs import read_utterances, write_inputs
from espnet_todm.bench.models.measure import Process, Target, Times, find_targets, measure
from espnet_todm.bench.models.table import FORMAT, HEADER, paired_ratio, results, table
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from espnet_todm.util.memory import resident_memory
from tests.cards import write_card
from tests.tiny_training import python

SIZES = {"full": 4e8, "medium": 2e8, "small": 1e8}  # FLOPs per second of speech


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Folders as extraction and export leave them; the graphs are no graphs."""
    for size, flops in SIZES.items():
        folder = tmp_path / "exp" / "subnets" / size
        (folder / "onnx").mkdir(parents=True)
        write_card(folder, size, cost={"flops_per_second": flops})
        (folder / "model.safetensors").write_bytes(b"0" * 1000)
        for name in ("model.onnx", "model.int8.onnx"):
            (folder / "onnx" / name).write_bytes(b"0" * int(flops / 1e5))
        (folder / "onnx" / "tokens.txt").write_text("<blk> 0\nA 1\n")
    return tmp_path / "exp"


def target(size: str = "full", threads: int = 1, flops: float = 4e8, **other: Any) -> Target:
    place = other.pop("files", ())
    return Target(size, other.pop("runtime", "onnxruntime"), "fp32", threads, Path(size), place, flops)


class Clockwork:
    """A worker whose every utterance takes as long as its size and the round say."""

    log: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, of: Target, slow: Mapping[int, float], features: float = 0.0) -> None:
        self.of, self.slow, self.features, self.rounds = of, slow, features, 0
        self.ready = {"runtime": 50.0, "startup": 0.25}
        self.log.append(("open", of.size))

    def round(self) -> Mapping[str, Any]:
        factor = self.slow.get(self.rounds, 1.0)
        self.rounds += 1
        self.log.append(("round", self.of.size))
        spans = [[self.features, length * factor * self.of.flops_per_second / 1e8] for length in (1.0, 2.0)]
        return {"elapsed": [[2 * one for one in span] for span in spans], "cpu": spans, "peak": 60.0 + self.rounds}

    def close(self) -> None:
        self.log.append(("close", self.of.size))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr(Clockwork, "log", [])
    return Clockwork.log


def targets(threads: int = 1) -> list[Target]:
    return [target(size, threads, flops) for size, flops in SIZES.items()]


def test_all_sizes_take_turns_in_every_round_and_are_closed(log: list[tuple[str, str]]) -> None:
    measured = measure([*targets(), *targets(2)], lambda of: Clockwork(of, {}), rounds=4)
    assert list(measured) == [*targets(), *targets(2)]
    half = len(log) // 2
    for part in (log[:half], log[half:]):  # one setting's processes have ended before the next one's begin
        assert [what for what, _ in part] == ["open"] * 3 + ["round"] * 12 + ["close"] * 3
        turns = [size for what, size in part if what == "round"]
        assert all(sorted(turns[start : start + 3]) == sorted(SIZES) for start in range(0, 12, 3))
        assert len({tuple(turns[start : start + 3]) for start in range(0, 12, 3)}) > 1  # not always in one order


def test_a_moment_that_is_slow_for_all_changes_no_ratio(log: list[tuple[str, str]]) -> None:
    slow = {0: 50.0, 2: 7.0, 3: 7.0}
    for entry in results(measure(targets(), lambda of: Clockwork(of, slow), rounds=5), [1.0, 2.0]):
        ideal = SIZES["full"] / SIZES[entry["size"]]
        assert entry["speedup"] == pytest.approx(ideal) == entry["ideal"]
        assert entry["speedup_interval"] == pytest.approx([ideal, ideal])
        assert entry["of_ideal"] == pytest.approx(1.0)


def test_figures_are_medians_of_what_was_measured(log: list[tuple[str, str]]) -> None:
    found = results(measure(targets(), lambda of: Clockwork(of, {1: 9.0}), rounds=3), [4.0, 8.0])
    small = next(entry for entry in found if entry["size"] == "small")
    assert small["cpu_seconds_per_second"] == pytest.approx(3.0 / 12.0)
    assert small["rtf"] == pytest.approx(2 * 3.0 / 12.0)
    assert (small["latency_p50_ms"], small["latency_p95_ms"]) == pytest.approx((3000.0, 3900.0))
    assert (small["peak_mib"], small["above_runtime_mib"], small["startup_ms"]) == (63.0, 13.0, 250.0)
    assert (small["against"], small["clock"]) == ("full", "cpu")


def test_features_are_told_apart(log: list[tuple[str, str]]) -> None:
    found = results(measure(targets(), lambda of: Clockwork(of, {}, features=3.0), rounds=3), [1.0, 2.0])
    small = next(entry for entry in found if entry["size"] == "small")
    assert small["features_cpu_seconds_per_second"] == pytest.approx(2.0)
    assert small["speedup"] == pytest.approx((6 + 12) / (6 + 3))
    assert small["speedup_without_features"] == pytest.approx(4.0)
    assert (small["of_ideal"], small["of_ideal_without_features"]) == pytest.approx((0.5, 1.0))


def test_more_threads_are_judged_by_the_wall_clock() -> None:
    shape = (3, 2, 2)
    times = {
        target("full", 2): Times(np.full(shape, 8.0), np.full(shape, 1.0), 1.0, 2.0, 0.1),
        target("small", 2, 1e8): Times(np.full(shape, 4.0), np.full(shape, 1.0), 1.0, 2.0, 0.1),
    }
    _, small = results(times, [1.0, 1.0])
    assert (small["clock"], small["speedup"]) == ("elapsed", pytest.approx(2.0))


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20), st.floats(0.5, 4.0))
def test_the_interval_of_a_paired_ratio_holds_it(rounds: list[float], factor: float) -> None:
    denominator = np.array(rounds)
    ratio, low, high = paired_ratio(factor * denominator, denominator)
    assert (ratio, low, high) == pytest.approx((factor, factor, factor))
    ratio, low, high = paired_ratio(np.ones(len(rounds)), denominator)
    assert 1 / max(rounds) - 1e-9 <= low <= ratio + 1e-9 and ratio - 1e-9 <= high <= 1 / min(rounds) + 1e-9


def test_the_table_has_a_row_for_each_target(log: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"0" * (3 << 20))
    group = [replace(one, files=(tmp_path / "model.onnx",)) for one in targets()]
    lines = table(results(measure(group, lambda of: Clockwork(of, {}), rounds=3), [1.0, 2.0])).splitlines()
    assert lines[0] == "|" + "|".join(HEADER) + "|" and len(lines) == 5
    cells = lines[4].strip("|").split("|")
    assert len(cells) == len(HEADER)
    row = dict(zip(HEADER, cells))
    assert (row["runtime"], row["threads"], row["size"], row["file (MiB)"]) == ("onnxruntime", "1", "small", "3.0")
    assert (row["speed-up [95%]"], row["ideal (FLOPs)"], row["of ideal"]) == ("4.00 [4.00, 4.00]", "4.00", "1.00")


def test_targets_are_ordered_by_size_and_pytorch_has_no_int8(experiment: Path) -> None:
    found = find_targets(experiment, runtimes=("onnxruntime", "torch"), precisions=("fp32", "int8"), threads=(1, 2))
    assert [one.size for one in found] == ["full", "medium", "small"] * 6
    assert list(dict.fromkeys(one.setting for one in found)) == [
        *(("onnxruntime", precision, threads) for precision in ("fp32", "int8") for threads in (1, 2)),
        *(("torch", "fp32", threads) for threads in (1, 2)),
    ]
    assert found[0].files == (experiment / "subnets" / "full" / "onnx" / "model.onnx",)
    assert found[-1].files == (experiment / "subnets" / "small" / "model.safetensors",)
    assert (found[0].input, target(runtime="sherpa-onnx").input) == ("features", "audio")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": ["tiny"]}, ["subnets/tiny/card.json", "no such file"]),
        ({"runtimes": ["tflite"]}, ["runtimes: 'tflite'", "onnxruntime"]),
        ({"precisions": ["int4"]}, ["precisions: 'int4'", "int8"]),
        ({"precisions": ["fp16"]}, ["model.fp16.onnx", "no such file", "fp32, int8"]),
        ({"threads": [2, 0]}, ["threads: 0", ">= 1"]),
        ({"threads": []}, ["threads: 0", ">= 1"]),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(experiment: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find_targets(experiment, **{"runtimes": ["onnxruntime"], **options})
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_without_subnets_or_graphs_names_the_command(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: has no subnets/<size>.*bin\.extract"):
        find_targets(tmp_path / "nothing")
    for file in (experiment / "subnets" / "small" / "onnx").iterdir():
        file.unlink()
    (experiment / "subnets" / "small" / "onnx").rmdir()
    with pytest.raises(UserError, match=r"small/onnx: no such folder; python -m espnet_todm\.bin\.export"):
        find_targets(experiment, runtimes=["onnxruntime"])
    with pytest.raises(UserError, match=r"rounds: 0 is not allowed"):
        measure([], lambda of: Clockwork(of, {}), rounds=0)


def test_workers_are_closed_when_one_fails(log: list[tuple[str, str]]) -> None:
    def opener(of: Target) -> Clockwork:
        if of.size == "small":
            raise UserError("small: damaged")
        return Clockwork(of, {})

    with pytest.raises(UserError, match="damaged"):
        measure(targets(), opener, rounds=1)
    assert log == [("open", "full"), ("open", "medium"), ("close", "full"), ("close", "medium")]


def test_a_damaged_graph_is_told_by_its_process(experiment: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (one,) = find_targets(experiment, ["small"], ["onnxruntime"], ["fp32"])
    np.savez(tmp_path / "features.npz", np.zeros((50, 80), dtype=np.float32))
    with pytest.raises(
        UserError, match=r"small/onnx in onnxruntime: .*model\.onnx: onnxruntime cannot load it"
    ) as error:
        Process(one, tmp_path / "features.npz")
    assert "\n" not in str(error.value)


def test_a_process_that_dies_says_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = subprocess.Popen

    def dying(command: list[str], **options: Any) -> Any:
        words = "import sys; sys.stdin.readline(); print('first\\nlast words', file=sys.stderr); sys.exit(7)"
        return start([sys.executable, "-c", words], **options)

    monkeypatch.setattr(subprocess, "Popen", dying)
    with pytest.raises(UserError, match=r"full in onnxruntime: the process ended with status 7 \(last words\)"):
        Process(target(), tmp_path / "none.npz")


class Echo:
    """A model that logs what it is given."""

    chunk_seconds = tail_seconds = 0.0

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def prepare(self, utterance: np.ndarray) -> int:
        self.seen.append(("prepare", len(utterance)))
        return len(utterance)

    def infer(self, prepared: int, chunks: list[Any]) -> None:
        self.seen.append(("infer", prepared))


def test_a_worker_runs_once_uncounted_and_then_for_every_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = Echo()
    monkeypatch.setattr(worker, "import_runtime", lambda runtime: None)
    monkeypatch.setattr(worker, "load_model", lambda *job: model)
    np.savez(tmp_path / "features.npz", np.zeros((5, 80)), np.zeros((6, 80)))
    job = {"runtime": "torch", "folder": ".", "precision": "fp32", "threads": 1}
    answers = list(worker.serve({**job, "inputs": str(tmp_path / "features.npz")}, io.StringIO("round\nround\n")))
    assert model.seen == [("prepare", 5), ("infer", 5), ("prepare", 6), ("infer", 6)] * 3
    assert list(answers[0]) == ["runtime", "startup", "chunk_seconds", "tail_seconds"] and len(answers) == 3
    for answer in answers[1:]:
        assert np.array(answer["elapsed"]).shape == np.array(answer["cpu"]).shape == (2, 2)
        assert np.min(answer["elapsed"]) >= 0 and answer["peak"] >= resident_memory() * 0.5
        json.dumps(answer)


PEAKS = """
import numpy as np
from espnet_todm.util.memory import peak_memory, reset_peak, resident_memory

reset_peak()
before = peak_memory()
block = np.ones(8 << 20)  # 64 MiB
with_block = peak_memory()
assert with_block >= resident_memory() - 1 and with_block >= before - 1
if reset_peak():
    assert peak_memory() >= before + 60
del block
assert peak_memory() >= with_block - 1 >= before - 2
if reset_peak():
    assert peak_memory() <= with_block - 60
"""


def test_peak_memory_never_falls_and_sees_what_was_taken() -> None:
    """Within 1 MiB: the system counts pages processor by processor. In a process of its own, since others that ran in this
    one may have changed how memory is given back."""
    done = python(["-c", PEAKS])
    assert done.returncode == 0, done.stderr


def test_a_process_does_not_begin_with_the_memory_of_the_one_that_started_it() -> None:
    held = np.ones(16 << 20)  # 128 MiB here
    look = "from espnet_todm.util.memory import peak_memory; print(peak_memory())"
    peak = float(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout)
    assert 1 < peak < min(128, resident_memory()) and held.nbytes == 128 << 20


def test_speech_is_read_as_samples_and_features(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(scale=0.1, size=16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path / 'a.wav'}\nb {tmp_path / 'a.wav'}\n")
    found = read_utterances(tmp_path / "wav.scp", 5, audio=True)
    assert found.seconds == [1.0, 1.0] and [len(one) for one in found.audio] == [16000, 16000]
    assert [one.shape for one in found.features] == [(100, 80), (100, 80)]
    files = write_inputs(tmp_path, found)
    with np.load(files["audio"]) as stored:
        np.testing.assert_array_equal([stored[name] for name in stored.files], found.audio)
    with pytest.raises(UserError, match="utterances: 0"):
        read_utterances(tmp_path / "wav.scp", 0, audio=True)


def test_features_are_no_audio(tmp_path: Path) -> None:
    import kaldiio

    kaldiio.save_ark(
        str(tmp_path / "f.ark"), {"a": np.zeros((120, 80), dtype=np.float32)}, scp=str(tmp_path / "feats.scp")
    )
    assert read_utterances(tmp_path / "feats.scp", 1, audio=False).seconds == [pytest.approx(1.2)]
    with pytest.raises(UserError, match=r"feats\.scp: holds features, but sherpa-onnx takes audio; give a wav\.scp"):
        read_utterances(tmp_path / "feats.scp", 1, audio=True)


def test_the_command_writes_a_table_and_a_file(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, log: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr("espnet_todm.bench.models.measure.Process", lambda of, inputs: Clockwork(of, {}))
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(scale=0.1, size=16000), 16000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path / 'a.wav'}\nb {tmp_path / 'a.wav'}\n")
    output = tmp_path / "latency.json"
    command = ["--experiment", str(experiment), "--scp", str(tmp_path / "wav.scp"), "--output", str(output)]
    command += ["--runtimes", "onnxruntime", "--threads", "1", "2", "--rounds", "3"]
    main(command)
    printed = capsys.readouterr().out
    assert printed.count("|onnxruntime|") == 12 and "2 utterances, 2 s, 3 rounds on" in printed
    stored = read_json(output)
    assert stored["format"] == FORMAT and len(stored["results"]) == 12
    assert {"cpu", "cores", "load_before", "load_after", "date"} <= set(stored["machine"])
    with pytest.raises(UserError, match=r"--output: .*latency\.json exists"):
        main(command)
