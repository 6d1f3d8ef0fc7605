"""The gate on chunks: the runtimes of a streaming model agree, and a file's fault is found before sherpa-onnx meets it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.deploy.forms.streaming_ctc import StreamingOnnx
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.deploy.parity.gate import ParityError, check_parity
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime import sherpa_subprocess
from espnet_todm.deploy.runtime.chunks import run_chunks, tail_seconds, whole_chunks, with_tail
from espnet_todm.deploy.runtime.fbank import SILENCE
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.sherpa_subprocess import make_order, transcribe_in_subprocess
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from tests.deploy.onnx.test_streaming import STREAMS, check_exact_steps, extracted, faded_noise
from tests.tiny_experiment import change_weights, write_experiment

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sherpa_onnx")


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a streaming subnet of 80 features, exported into its subfolder streaming-onnx."""
    folder = extracted(write_experiment(tmp_path_factory.mktemp("streaming"), features=80, **STREAMS))
    export(folder, options=ExportOptions(precisions=("fp32", "int8"), format=STREAMING_FOLDER))
    return folder


@pytest.fixture(scope="module")
def speech() -> list[Speech]:
    return faded_noise()


def test_all_runtimes_agree(subnet: Path, speech: list[Speech]) -> None:
    report = check_parity(subnet, subnet / "streaming-onnx", speech, ("fp32", "int8"))
    check_exact_steps(report)
    assert [rate.of for rate in report.rates] == [
        "PyTorch under the chunks' mask", "onnxruntime fp32", "sherpa-onnx fp32", "onnxruntime int8", "sherpa-onnx int8",
        "PyTorch under the chunks' mask, without the tail", "PyTorch, full context",
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
    ("key", "value"), [("left_context_len", "6"), ("encoder_dims", None), ("num_encoder_layers", "2")]
)
def test_what_ends_sherpa_onnx_is_told_in_one_line(
    subnet: Path, speech: list[Speech], tmp_path: Path, key: str, value: Optional[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(subnet / "streaming-onnx", folder)
    model = onnx.load(str(folder / "model.onnx"))
    about = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    onnx.helper.set_model_props(model, {**about, **({key: value} if value else {})})
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(UserError, match="sherpa-onnx ended its process with status") as caught:
        transcribe_in_subprocess(folder, "fp32", 1, [speech[0].samples])
    assert "\n" not in str(caught.value)


def test_runtimes_open_a_streaming_folder(subnet: Path, speech: list[Speech]) -> None:
    ours, theirs = (open_runtime(kind, subnet / "streaming-onnx") for kind in ("onnxruntime", "sherpa-onnx"))
    assert isinstance(ours, StreamingOnnx) and ours.chunk == (3, 5)
    for samples in (speech[0].samples, speech[0].samples[:3000], speech[0].samples[:200], speech[0].samples[:0]):
        assert ours.transcribe(samples) == theirs.transcribe(samples)
    assert ours.transcribe(speech[0].samples[:3000])  # of less than a chunk


@given(frames=st.integers(0, 200), left=st.integers(1, 9))
def test_whole_chunks_are_what_the_runtime_takes(frames: int, left: int) -> None:
    window, shift = left * 4 + 3, left * 4
    done = taken = 0
    while done + window < frames:  # its own rule (online-recognizer-ctc-impl.h)
        taken, done = done + window, done + shift
    assert whole_chunks(frames, window, shift) == taken


def seen(frames: int, window: int, shift: int) -> np.ndarray:
    """What chunks are given, (chunks, window): the numbers of the frames; silence is below -15."""
    features = np.arange(frames, dtype=np.float32)[:, None]
    return run_chunks(lambda x, caches: (x.transpose(0, 2, 1), caches), [], features, window, shift)


@given(frames=st.integers(0, 200), left=st.integers(1, 9))
def test_what_makes_no_whole_chunk_gets_silence_behind_it(frames: int, left: int) -> None:
    window, shift = left * 4 + 3, left * 4
    chunks = seen(frames, window, shift)
    expected = np.arange(window) + shift * np.arange(len(chunks))[:, None]
    np.testing.assert_allclose(chunks, np.where(expected < frames, expected, SILENCE), rtol=1e-6)
    assert expected[-1, -1] >= frames - 1  # nothing is left out
    assert len(chunks) == 1 or expected[-2, -1] < frames - 1  # and no chunk is of silence alone


@given(samples=st.integers(0, 60000), left=st.integers(1, 20))
def test_the_tail_brings_every_sample_into_a_chunk(samples: int, left: int) -> None:
    """Its own rule for what it takes, of the frames that it makes of so many samples and the tail."""
    window, shift = left * 4 + 3, left * 4
    given_ = len(with_tail(np.zeros(samples, dtype=np.float32), tail_seconds(window)))
    taken = whole_chunks(round(given_ / 160), window, shift)
    assert taken * 160 >= samples and taken >= window


def test_the_card_says_what_silence_to_give(subnet: Path) -> None:
    card = read_json(subnet / "streaming-onnx" / "card.json")
    assert card["streaming"] == {"frames": 3, "left": 5, "chunk_seconds": 0.12, "tail_seconds": 0.17}
    assert make_order(subnet / "streaming-onnx", "fp32", 1)["details"] == {"shift": 12, "tail_seconds": 0.17}
    model = onnx.load(str(subnet / "streaming-onnx" / "model.onnx"))
    assert {entry.key: entry.value for entry in model.metadata_props}["todm_tail_seconds"] == "0.17"


def test_sherpa_onnx_gets_the_speech_and_the_tail_and_nothing_else(
    subnet: Path, speech: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail that is too short is seen by the gate: it helps nobody."""
    order = make_order(subnet / "streaming-onnx", "fp32", 1)
    short = {**order, "details": {**order["details"], "tail_seconds": 0.0}}
    monkeypatch.setattr(sherpa_subprocess, "make_order", lambda *_: short)
    with pytest.raises(ParityError, match=r"the transcripts of sherpa-onnx fp32.* part"):
        check_parity(subnet, subnet / "streaming-onnx", speech)
