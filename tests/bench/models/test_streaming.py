"""Streaming exports are timed chunk by chunk, in onnxruntime and in sherpa-onnx's online recognizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from espnet_todm.bin.latency import main

from espnet_todm.bench.models.chunks import Chunks
from espnet_todm.bench.models.measure import Target, Times, find_targets
from espnet_todm.bench.models.table import results, table
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.forms.streaming import OnlineRecognizer
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from tests.deploy.toy_onnx import write_toy_ctc
from tests.tiny_corpus import noise
from tests.tiny_experiment import write_experiment

STREAMS = {"causal": True, "decode_chunk": [3, 5], "conv_norm": "layer_norm"}


def test_every_chunk_is_timed_in_both_runtimes(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    root = write_experiment(tmp_path / "exp", features=80, **STREAMS)
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    for size in ("full", "small"):
        extract(supernet, supernet.encoder.find_subnet(size), root / "subnets" / size)
        export(root / "subnets" / size, options=ExportOptions(precisions=(), format=STREAMING_FOLDER))
    (tmp_path / "wav.scp").write_text(f"a {tmp_path / 'a.wav'}\n")
    soundfile.write(tmp_path / "a.wav", noise(1.5, 0), 16000)
    output, scp = tmp_path / "latency.json", str(tmp_path / "wav.scp")
    command = ["--experiment", str(root), "--scp", scp, "--output", str(output), "--precisions", "fp32"]
    main([*command, "--format", STREAMING_FOLDER, "--rounds", "2"])
    rows = read_json(output)["results"]
    assert [(row["runtime"], row["size"]) for row in rows] == [
        (runtime, size) for runtime in ("onnxruntime", "sherpa-onnx") for size in ("full", "small")
    ]
    for row in rows:
        assert row["chunk_seconds"] == 0.12 and 0 < row["chunk_p50_ms"] <= row["chunk_p95_ms"]
        assert 0 < row["first_word_p50_ms"] <= row["first_word_p95_ms"] and row["startup_ms"] > 0
        # The tail of 0.17 s, or some frames less, and the computation.
        assert row["end_p50_ms"] > 50 + row["chunk_p50_ms"]
        assert row["rtf"] > 0.5 * row["chunk_p50_ms"] / 1000 / row["chunk_seconds"]  # a chunk's time is in the whole
    with pytest.raises(UserError, match="runtimes: torch is not measured in chunks; allowed: onnxruntime, sherpa-onnx"):
        find_targets(root, runtimes=["torch"], graphs=STREAMING_FOLDER)
    with pytest.raises(UserError, match=r"small/onnx: no such folder"):
        find_targets(root, ["small"], ["onnxruntime"], ["fp32"])
    write_toy_ctc(root / "subnets/small" / STREAMING_FOLDER)
    with pytest.raises(
        UserError, match=r"small/streaming-onnx: holds no streaming-onnx model; make it with bin\.export"
    ):
        find_targets(root, ["small"], ["onnxruntime"], ["fp32"], graphs=STREAMING_FOLDER)


class Online:
    """A recognizer that is ready when there is one sample more than a chunk of 100 needs, from 150 on."""

    def create_stream(self) -> Online:
        self.samples, self.done = 0, 0
        return self

    def accept_waveform(self, rate: int, samples: np.ndarray) -> None:
        self.samples += len(samples)

    def is_ready(self, stream: Online) -> bool:
        return self.samples > 150 * 160 + self.done * 100 * 160

    def decode_stream(self, stream: Online) -> None:
        self.done += 1

    def input_finished(self) -> None:
        self.samples += 320  # the frames that waited for what is to their right

    def get_result(self, stream: Online) -> str:
        return f"{self.done} chunks" if self.done > 2 else ""


def test_a_stream_gets_its_samples_chunk_by_chunk() -> None:
    model, chunks = OnlineRecognizer(Online(), 100, 0.0), []  # type: ignore[var-annotated]
    assert model.infer(model.prepare(np.zeros(160 * 450, dtype=np.float32)), chunks) == "4 chunks"
    assert [chunk.heard for chunk in chunks] == [False, False, True, True] and model.chunk_seconds == 1.0


def test_figures_are_of_the_speech_in_chunks() -> None:
    chunks = np.array([[0.002, 0.004, 0.006], [0.004, 0.006, 0.008], [0.003, 0.005, 0.007]])  # 3 rounds, 3 chunks
    elapsed = np.stack([np.zeros((3, 1)), chunks.sum(1, keepdims=True)], axis=2)
    target = Target("full", "onnxruntime", "fp32", 1, Path("full"), (), 1e8)
    measured = Chunks(chunks, [3], [1], 0.64, 0.69)
    (row,) = results({target: Times(elapsed, elapsed, 1.0, 2.0, 0.1, measured)}, [1.6])
    assert row["rtf"] == pytest.approx(0.015 / (3 * 0.64))
    assert (row["chunk_seconds"], row["chunk_p50_ms"]) == (0.64, pytest.approx(5.0))
    assert row["chunk_p95_ms"] == pytest.approx(6.8)
    assert row["first_word_p50_ms"] == row["first_word_p95_ms"] == pytest.approx(690 + 640 + 5)
    assert row["end_p50_ms"] == pytest.approx(690 + 2 * 640 + 7 - 1600)
    lines = table([row]).splitlines()
    assert "chunk p95 (ms)|" in lines[0] and lines[0].count("|") == lines[2].count("|")
