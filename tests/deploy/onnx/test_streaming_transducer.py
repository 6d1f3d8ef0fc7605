"""Streaming transducers: three graphs that stock sherpa-onnx's online recognizer decodes as PyTorch does chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espnet_todm.deploy.forms.streaming_transducer import FORM
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER, read_tokens
from espnet_todm.deploy.onnx.streaming import CACHES, streaming_transducer
from espnet_todm.deploy.parity.gate import ParityError, check_parity
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.deploy.runtime.streaming_torch import streaming_runtime
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from tests.deploy.onnx.test_streaming import STREAMS, check_exact_steps, extracted, faded_noise, in_chunks
from tests.tiny_experiment import TRANSDUCER, change_weights, write_experiment

STATEFORMER = {"attention_heads": 4, "use_cnn_module": True, "cnn_module_kernel": 5}
KINDS: dict[str, dict[str, Any]] = {
    "conformer": STREAMS,
    "state spaces": {"encoder": "todm_mh_ssm", "bidirectional": False, "ssm_stack": 2, **STREAMS},
    "Stateformer": {"encoder": "todm_mh_ssm", "bidirectional": False, **STATEFORMER, **STREAMS},
}


@pytest.fixture(scope="module", params=KINDS)
def subnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uneven subnet of 80 features, exported into its subfolder streaming-onnx."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("rnnt")
    folder = extracted(write_experiment(root, changes=TRANSDUCER, features=80, **KINDS[request.param]))
    change_weights(folder, lambda name, value: 3 * value if "lin_out.weight" in name else value)  # fewer blanks
    export(folder, options=ExportOptions(precisions=("fp32", "int8"), format=STREAMING_FOLDER))
    return folder


@pytest.fixture(scope="module")
def speech() -> list[Speech]:
    return faded_noise()


@torch.no_grad()
def test_module_is_the_model_on_whole_utterances(subnet: Path) -> None:
    model, _ = load_extracted(subnet)
    module = streaming_transducer(model)
    x = torch.randn(2, 20 * 12 + 3, 80)
    encoded, _ = model.encode(x.clone(), torch.tensor([x.size(1)] * 2))
    expected = model.joint_network.lin_enc(encoded)
    torch.testing.assert_close(in_chunks(module, x), expected, atol=1e-4, rtol=0)


def test_the_graphs_have_what_the_runtime_asks_for(subnet: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = subnet / STREAMING_FOLDER
    names = [
        "decoder.int8.onnx",
        "decoder.onnx",
        "encoder.int8.onnx",
        "encoder.onnx",
        "joiner.int8.onnx",
        "joiner.onnx",
    ]
    assert sorted(path.name for path in folder.glob("*.onnx")) == names
    graph = onnx.load(str(folder / "encoder.onnx"))
    about = {entry.key: entry.value for entry in graph.metadata_props}
    expected = {"model_type": "zipformer2", "T": "15", "decode_chunk_len": "12", "left_context_len": "5"}
    assert expected.items() <= about.items() and about["todm_tail_seconds"] == "0.17"
    assert [value.name for value in graph.graph.input] == ["x", *CACHES]
    assert [value.name for value in graph.graph.output] == ["encoder_out", *(f"new_{name}" for name in CACHES)]


def test_all_runtimes_agree(subnet: Path, speech: list[Speech]) -> None:
    pytest.importorskip("sherpa_onnx")
    report = check_parity(subnet, subnet / STREAMING_FOLDER, speech, ("fp32", "int8"))
    check_exact_steps(report)


def test_the_predictor_goes_on_from_chunk_to_chunk(subnet: Path, speech: list[Speech]) -> None:
    """The search by chunks, which benchmarks time, finds the path of the search over the whole utterance."""
    ours: Any = open_runtime("onnxruntime", subnet / STREAMING_FOLDER)
    torch_runtime: Any = streaming_runtime(*load_extracted(subnet))
    for one in speech:
        features, times = ours.features(one.samples), []
        path = ours.path(ours.encode(features))
        assert ours.infer(features, times) == path == torch_runtime.path(torch_runtime.encode(features))
        assert len(times) == len(path) // 3 and len(ours.labels(path)) > 2


def test_a_graph_of_another_model_is_told_apart(subnet: Path, speech: list[Speech], tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "subnet"
    shutil.copytree(subnet, other)
    change_weights(other, lambda name, value: 2 * value if "lin_enc.weight" in name else value)
    with pytest.raises(ParityError, match="of onnxruntime fp32 and of PyTorch under the chunks' mask part"):
        check_parity(other, other / STREAMING_FOLDER, speech)


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_stock_sherpa_onnx_decodes_several_streams(subnet: Path, speech: list[Speech], method: str) -> None:
    """Audio comes in pieces. Greedy search gives the tokens of PyTorch, and beam search tokens as well."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    folder = subnet / STREAMING_FOLDER
    parts = {part: str(folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"), num_threads=1, decoding_method=method, **parts
    )
    ours: Any = streaming_runtime(*load_extracted(subnet))
    streams = [recognizer.create_stream() for _ in speech]
    tail = np.zeros(round(0.17 * 16000), dtype=np.float32)
    for piece in range(10):
        for stream, one in zip(streams, speech):
            stream.accept_waveform(16000, np.array_split(np.concatenate([one.samples, tail]), 10)[piece])
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
    names = read_tokens(folder / "tokens.txt")
    for stream, one in zip(streams, speech):
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        heard = [token.strip() or "▁" for token in recognizer.tokens(stream)]
        assert len(heard) > 2
        if method == "greedy_search":
            labels = ours.labels(ours.path(ours.encode(ours.features(one.samples))))
            assert heard == [names[label] for label in labels]


def test_a_recurrent_predictor_is_one_line(tmp_path: Path) -> None:
    changes = {**TRANSDUCER, "decoder": "transducer", "decoder_conf": {"hidden_size": 12}}
    root = write_experiment(tmp_path, changes=changes, **STREAMS)
    with pytest.raises(
        UserError, match="decoder: TransducerDecoder is recurrent and has no export; use todm_stateless"
    ):
        FORM.export(*load_extracted(extracted(root)))
