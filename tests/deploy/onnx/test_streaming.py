"""Streaming exports: the graph is the streaming form, chunk by chunk, and stock sherpa-onnx writes the same text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espnet_todm.components import Subnet
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.forms.streaming_ctc import FORM
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.deploy.onnx.streaming import CACHES, StreamingGraph, streaming_ctc
from espnet_todm.deploy.parity.report import ParityReport
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from tests.conftest import random_subnet
from tests.tiny_experiment import write_experiment

STREAMS = {"causal": True, "decode_chunk": [3, 5], "conv_norm": "layer_norm", "conv_groups": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uneven subnet: blocks of other widths, one without attention, one without convolution."""
    root = write_experiment(tmp_path_factory.mktemp("streaming"), **STREAMS)
    return extracted(root)


def extracted(root: Path, seed: int = 4) -> Path:
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    subnet = random_subnet(supernet.encoder, seed)
    extract(supernet, subnet, root / "subnet")
    return root / "subnet"


def chunks(module: StreamingGraph, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The windows (B, window, F) of whole utterances (B, T, F); what is left at the end is not enough for one."""
    for start in range(0, x.size(1) - module.encoder.window + 1, module.encoder.shift):
        yield x[:, start : start + module.encoder.window]


def faded_noise() -> list[Speech]:
    """Three utterances of other lengths."""
    rng = np.random.default_rng(1)
    lengths = [9000 + 4321 * n for n in range(3)]
    noise = [(rng.normal(scale=0.1, size=n) * np.hanning(n)).astype(np.float32) for n in lengths]
    return [Speech(f"utt{n}", samples, "A B") for n, samples in enumerate(noise)]


def check_exact_steps(report: ParityReport) -> None:
    """PyTorch by chunks and float32 in both runtimes must be exact, the end of an utterance included."""
    assert report.first_fault is None
    exact = {(step.name, step.of) for step in report.steps if step.limit is not None}
    assert {
        ("posteriors", "PyTorch chunk by chunk"),
        ("posteriors", "onnxruntime fp32"),
        ("transcripts", "sherpa-onnx fp32"),
        ("transcripts", "sherpa-onnx fp32, short"),
    } <= exact


def in_chunks(module: StreamingGraph, x: torch.Tensor) -> torch.Tensor:
    """The outputs (B, T', D) of all chunks of whole utterances (B, T, F)."""
    first = module.initial(len(x))
    caches, outputs = first, []
    for window in chunks(module, x):
        output, *caches = module(window, *caches)
        assert [cache.shape for cache in caches] == [cache.shape for cache in first]
        outputs.append(output)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def test_module_is_the_model_on_whole_utterances(folder: Path) -> None:
    model, _ = load_extracted(folder)
    module = streaming_ctc(model)
    x = torch.randn(2, 20 * 12 + 3, 20)
    streamed = in_chunks(module, x)
    encoded, _ = model.encode(x.clone(), torch.tensor([x.size(1)] * 2))
    expected = model.ctc.log_softmax(encoded)
    text = [i for i, token in enumerate(model.token_list) if token not in ("<unk>", "<sos/eos>")]
    assert streamed.size(1) == expected.size(1) == 60
    expected = expected[..., text].log_softmax(-1)
    torch.testing.assert_close(streamed[..., text], expected, atol=1e-4, rtol=0)
    assert float(streamed.exp().sum(-1).min()) > 0.999
    others = [i for i in range(len(model.token_list)) if i not in text]
    assert others and float(streamed[..., others].max()) < -1000


def test_graph_is_the_module(folder: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    output = export(folder, tmp_path / "out", ExportOptions(precisions=("fp32", "int8"), format=STREAMING_FOLDER))
    assert sorted(p.name for p in output.iterdir()) == ["card.json", "model.int8.onnx", "model.onnx", "tokens.txt"]
    graph = onnx.load(str(output / "model.int8.onnx")).graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    # No matrix is put together anew in each run, so all could be made int8.
    assert not [node.name for node in graph.node if node.op_type in ("Reshape", "MatMul") and node.input[0] in floats]
    assert not [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in floats]
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    module = streaming_ctc(load_extracted(folder)[0])
    assert [value.name for value in session.get_inputs()] == ["x", *CACHES]
    about = session.get_modelmeta().custom_metadata_map
    assert {
        "T": "15",
        "decode_chunk_len": "12",
        "left_context_len": "5",
        "num_encoder_layers": "1",
    }.items() <= about.items()
    x = torch.randn(2, 99, 20)
    theirs, ours = [cache.numpy() for cache in module.initial(2)], module.initial(2)
    for window in chunks(module, x):
        expected, *ours = module(window, *ours)
        feed = dict(zip(["x", *CACHES], [window.numpy(), *theirs]))
        computed, *theirs = session.run(None, feed)
        np.testing.assert_allclose(computed, expected.detach().numpy(), atol=1e-4)


def test_runtime_caches_fit_the_metadata(folder: Path) -> None:
    """Sizes as sherpa-onnx makes them of the metadata (online-zipformer2-ctc-model.cc)."""
    module = streaming_ctc(load_extracted(folder)[0])
    about: dict[str, Any] = module.metadata()
    left, width = about["left_context_len"], about["encoder_dims"]
    key = about["query_head_dims"] * about["num_heads"]
    value = about["value_head_dims"] * about["num_heads"]
    filters = (1, width, about["cnn_module_kernels"] // 2)
    sizes = [(left, 1, key), (1, 1, left, 3 * width // 4), (left, 1, value), (left, 1, value), filters, filters]
    assert [tuple(cache.shape) for cache in module.initial(1)] == [*sizes, (1, 128, 3, 19), (1,)]
    assert min(min(size) for size in sizes) > 0


def test_a_subnet_of_feed_forward_modules_alone_streams(tmp_path: Path) -> None:
    root = write_experiment(tmp_path, **STREAMS)
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    keys = frozenset(key for key in supernet.encoder.component_table().by_key if key.module == "feed_forward")
    extract(supernet, Subnet("ffn", keys), root / "subnet")
    module = streaming_ctc(load_extracted(root / "subnet")[0])
    assert module.encoder.attention_width == module.encoder.convolution_width == 1
    _, *caches = module(torch.randn(2, module.encoder.window, 20), *module.initial(2))
    assert [cache.shape for cache in caches] == [cache.shape for cache in module.initial(2)]
    pytest.importorskip("onnxruntime")
    options = ExportOptions(precisions=(), format=STREAMING_FOLDER)
    export(root / "subnet", options=options)  # compares the graph with the module


@pytest.mark.parametrize(
    "changes, encoder, chunk, words",
    [
        ({}, {"causal": False, "decode_chunk": None}, (3, 5), "streaming: needs causal: true"),
        ({}, {"decode_chunk": None}, None, "decode_chunk: the model names none; give --chunk"),
        ({}, {}, (3, 0), "chunk: 3 and 0 are not possible"),
    ],
)
def test_what_cannot_stream_is_told(
    tmp_path: Path, changes: dict[str, Any], encoder: dict[str, Any], chunk: Any, words: str
) -> None:
    root = write_experiment(tmp_path, changes=changes, **{**STREAMS, **encoder})
    with pytest.raises(UserError, match=words):
        FORM.export(*load_extracted(extracted(root)), chunk)


def test_espnets_own_encoder_cannot_stream(tmp_path: Path) -> None:
    root = write_experiment(tmp_path)
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    card = extract(supernet, supernet.encoder.find_subnet("small"), root / "small")
    assert card["encoder"] == "conformer"
    with pytest.raises(UserError, match="encoder: ConformerEncoder cannot stream; needed: todm_conformer"):
        FORM.export(*load_extracted(root / "small"))


def test_posteriors_between_blocks_cannot_stream(folder: Path) -> None:
    model, config = load_extracted(folder)
    model.encoder.interctc_use_conditioning = True
    with pytest.raises(UserError, match="interctc_use_conditioning: true cannot stream"):
        FORM.export(model, config)


def test_static_int8_is_refused(folder: Path) -> None:
    options = ExportOptions(int8="static", calibrate="feats.scp", format=STREAMING_FOLDER)
    with pytest.raises(UserError, match="int8: static is not possible with streaming-onnx"):
        export(folder, options=options)


@pytest.mark.parametrize("kind", [{}, {"encoder": "todm_mh_ssm", "bidirectional": False}], ids=str)
def test_stock_sherpa_onnx_writes_what_the_graph_says(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Two streams at a time, audio fed in pieces, on a model of 80 features: the text is that of the chunks."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    lhotse = pytest.importorskip("lhotse")
    root = write_experiment(tmp_path, features=80, **STREAMS, **kind)
    output = export(extracted(root), options=ExportOptions(precisions=(), format=STREAMING_FOLDER))
    module = streaming_ctc(load_extracted(root / "subnet")[0])
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(output / "tokens.txt"), model=str(output / "model.onnx"), num_threads=1
    )
    rng = np.random.default_rng(0)
    audio = [
        rng.normal(scale=0.1, size=n).astype(np.float32) * np.linspace(0, 1, n, dtype=np.float32)
        for n in (16000, 20000)
    ]
    streams = [recognizer.create_stream() for _ in audio]
    for piece in range(10):
        for stream, samples in zip(streams, audio):
            stream.accept_waveform(16000, np.array_split(samples, 10)[piece])
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
    for stream in streams:
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
    names = [line.split()[0] for line in (output / "tokens.txt").read_text(encoding="utf-8").splitlines()]
    for stream, samples in zip(streams, audio):
        features = torch.from_numpy(np.asarray(lhotse.Fbank().extract(samples, 16000)))[None]
        features = features[:, : (features.size(1) - 1)]  # the runtime waits for one frame more than a chunk needs
        caches, best = module.initial(1), []
        for window in chunks(module, features):
            log_probs, *caches = module(window, *caches)
            best += log_probs[0].argmax(-1).tolist()
        labels = [label for place, label in enumerate(best) if label and (place == 0 or label != best[place - 1])]
        assert len(labels) > 2
        assert [token.strip() or "▁" for token in recognizer.tokens(stream)] == [names[label] for label in labels]
