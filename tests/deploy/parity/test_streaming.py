"""The gate on chunks: the runtimes of a streaming model agree, and a file's fault is found before sherpa-onnx meets it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.onnx.export import ExportOptions
from espnet_todm.deploy.onnx.streaming import export_streaming
from espnet_todm.deploy.parity.gate import ParityError, check_parity
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.sherpa_check import check_for_sherpa
from espnet_todm.deploy.runtime.streaming import StreamingOnnx, run_chunks, whole_chunks, with_tail
from espnet_todm.errors import UserError
from tests.deploy.conftest import change_weights, write_experiment
from tests.deploy.onnx.test_streaming import STREAMS, extracted

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sherpa_onnx")


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a streaming subnet of 80 features, exported into its subfolder streaming-onnx."""
    folder = extracted(write_experiment(tmp_path_factory.mktemp("streaming"), features=80, **STREAMS))
    export_streaming(folder, options=ExportOptions(precisions=("fp32", "int8")))
    return folder


@pytest.fixture(scope="module")
def speech() -> list[Speech]:
    rng = np.random.default_rng(1)
    return [
        Speech(
            f"utt{n}",
            (rng.normal(scale=0.1, size=9000 + 4321 * n) * np.hanning(9000 + 4321 * n)).astype(np.float32),
            "A B",
        )
        for n in range(3)
    ]


def test_all_runtimes_agree(subnet: Path, speech: list[Speech]) -> None:
    report = check_parity(subnet, subnet / "streaming-onnx", speech, ("fp32", "int8"))
    assert report.first_fault is None
    exact = {(step.name, step.of) for step in report.steps if step.limit is not None}
    assert {
        ("posteriors", "PyTorch chunk by chunk"),
        ("posteriors", "onnxruntime fp32"),
        ("transcripts", "sherpa-onnx fp32"),
    } <= exact
    assert [rate.of for rate in report.rates] == [
        "PyTorch under the chunks' mask", "onnxruntime fp32", "sherpa-onnx fp32", "onnxruntime int8", "sherpa-onnx int8",
        "PyTorch, full context",
    ]  # fmt: skip
    assert (subnet / "streaming-onnx" / "parity.md").is_file()


def test_a_file_of_another_model_is_told_apart(subnet: Path, speech: list[Speech], tmp_path: Path) -> None:
    other = tmp_path / "subnet"
    shutil.copytree(subnet, other)
    change_weights(other, lambda name, value: 2 * value if "ctc_lo.weight" in name else value)
    with pytest.raises(
        ParityError, match="the posteriors of onnxruntime fp32 and of PyTorch under the chunks' mask part"
    ):
        check_parity(other, other / "streaming-onnx", speech)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("left_context_len", "6", "input key has the shape"),
        ("encoder_dims", None, "its metadata lack encoder_dims"),
        ("num_encoder_layers", "2", "num_encoder_layers: 2; needed: 1"),
    ],
)
def test_what_would_end_the_runtime_is_found_before(
    subnet: Path, tmp_path: Path, key: str, value: str, words: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(subnet / "streaming-onnx", folder)
    assert check_for_sherpa(folder).model_type == "zipformer2_ctc"
    model = onnx.load(str(folder / "model.onnx"))
    about = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    onnx.helper.set_model_props(model, {**about, **({key: value} if value else {})})
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(UserError, match=words):
        check_for_sherpa(folder)


def test_runtimes_open_a_streaming_folder(subnet: Path, speech: list[Speech]) -> None:
    ours, theirs = (open_runtime(kind, subnet / "streaming-onnx") for kind in ("onnxruntime", "sherpa-onnx"))
    assert isinstance(ours, StreamingOnnx) and ours.chunk == (3, 5)
    samples = with_tail(speech[0].samples, ours.window)
    features = ours.features(samples)
    assert ours.text(features[: whole_chunks(len(features), ours.window, ours.shift)]) == theirs.transcribe(samples)


@given(frames=st.integers(0, 200), left=st.integers(1, 9))
def test_whole_chunks_are_what_the_runtime_takes(frames: int, left: int) -> None:
    window, shift = left * 4 + 3, left * 4
    done = taken = 0
    while done + window < frames:  # its own rule (online-recognizer-ctc-impl.h)
        taken, done = done + window, done + shift
    assert whole_chunks(frames, window, shift) == taken


def test_too_short_for_a_chunk_is_told() -> None:
    with pytest.raises(UserError, match="5 feature frames are too few for one chunk, which takes 7"):
        run_chunks(lambda x, caches: (x, caches), [], np.zeros((5, 80), dtype=np.float32), 7, 4)
