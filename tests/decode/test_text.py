"""What is no text is written nowhere, whoever decodes; tokens that are words keep their spaces on the way to the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
import torch

from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.options import TRANSDUCER_BEAM, SearchOptions
from espnet_todm.decode.text import Spelling, forbidden_tokens
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.parity.gate import check_parity
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.espnet.load import load_extracted
from tests.tiny_corpus import noise
from tests.tiny_experiment import TRANSDUCER, write_experiment

FEATURES = [np.random.default_rng(seed).normal(size=(60 + 9 * seed, 20)).astype(np.float32) for seed in range(3)]
WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.9, 0.5, 1.3))]
PHONES = ["<blank>", "<unk>", "AA", "B#", "SIL", "S", "T#", "▁", "a▁b", "K", "<sos/eos>"]


def small_of(folder: Path, layer: str, changes: Optional[dict[str, Any]] = None, features: int = 20) -> Path:
    """A subnet that is sure of itself, and above all of what is no text."""
    write_experiment(folder, changes=changes, features=features, conv_norm="layer_norm")
    state = torch.load(folder / "model.pth", weights_only=True)
    state[f"{layer}.weight"] *= 8
    for number in (1, 10):
        state[f"{layer}.bias"][number] = 4.0
    torch.save(state, folder / "model.pth")
    supernet = load_supernet(folder / "config.yaml", folder / "model.pth")
    extract(supernet, supernet.encoder.find_subnet("small"), folder / "small")
    return folder / "small"


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_of(tmp_path_factory.mktemp("ctc"), "ctc.ctc_lo")


@pytest.fixture(scope="module")
def transducer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_of(tmp_path_factory.mktemp("transducer"), "joint_network.lin_out", TRANSDUCER)


@torch.no_grad()
def test_the_model_itself_would_write_them(ctc: Path) -> None:
    model, _ = load_extracted(ctc)
    encoded, _ = model.encode(torch.tensor(FEATURES[0])[None], torch.tensor([len(FEATURES[0])]))
    assert 1 in model.ctc.argmax(encoded)[0] and 10 in model.ctc.argmax(encoded)[0]
    assert forbidden_tokens(model) == [1, 10]


def test_the_last_token_of_a_list_without_marks_is_text() -> None:
    model = SimpleNamespace(token_list=["<blank>", "<unk>", "A", "B"], sos=3, eos=3, blank_id=0)
    assert forbidden_tokens(model) == [1]
    for last, expected in (("<space>", [1]), ("<sos/eos>", [1, 3]), ("</s>", [1, 3]), ("<", [1])):
        model.token_list[3] = last
        assert forbidden_tokens(model) == expected, last
    model.blank_id = 3
    assert forbidden_tokens(model) == [1]  # a blank is never forbidden


def test_outputs_between_blocks_are_left_out(ctc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESPnet's models give them beside the last one where they have an intermediate CTC."""
    decoder, runtime = Decoder(*load_extracted(ctc)), open_runtime("torch", ctc)
    expected = [runtime.text(one) for one in FEATURES]
    for model in (decoder.model, runtime.model):
        plain = model.encode

        def beside(speech: torch.Tensor, lengths: torch.Tensor, plain: Any = plain) -> Any:
            encoded, frames = plain(speech, lengths)
            return (encoded, [(1, torch.zeros_like(encoded))]), frames

        monkeypatch.setattr(model, "encode", beside)
    assert [runtime.text(one) for one in FEATURES] == expected
    assert [" ".join(decoder([torch.tensor(one)])[0].split()) for one in FEATURES] == expected


@pytest.mark.parametrize("name", ["ctc", "transducer"])
def test_decoding_writes_what_the_runtime_writes(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    decoder, runtime = Decoder(*load_extracted(folder)), open_runtime("torch", folder)
    texts = decoder([torch.tensor(one) for one in FEATURES])
    assert [" ".join(text.split()) for text in texts] == [runtime.text(one) for one in FEATURES]
    assert all(texts) and not [text for text in texts if "<" in text]


def test_no_search_writes_them(ctc: Path, transducer: Path) -> None:
    batch = [torch.tensor(one) for one in FEATURES]
    for kind in TRANSDUCER_BEAM:
        texts = Decoder(*load_extracted(transducer), SearchOptions(kind, beam_size=2))(batch)
        assert any(texts) and not [text for text in texts if "<" in text]
    posteriors = Decoder(*load_extracted(ctc)).log_posteriors(batch)[0]
    assert posteriors[:, [1, 10]].max() < -1000
    np.testing.assert_allclose(np.exp(posteriors).sum(axis=1), 1, atol=1e-5)
    pytest.importorskip("flashlight")
    texts = Decoder(*load_extracted(ctc), SearchOptions("prefix"))(batch)
    assert any(texts) and not [text for text in texts if "<" in text]


def test_words_and_phonemes_are_spelled_with_spaces() -> None:
    for token_type in ("word", "phn"):
        spelling = Spelling({"token_type": token_type, "bpemodel": None})
        assert spelling.text(["HH", "AH0"]) == "HH AH0" and spelling.text([]) == ""
        assert spelling.tokens("HH AH0") == ["HH", "AH0"]
    assert Spelling({"token_type": "char"}).text(["<space>", "A", "<space>", "B"]) == "A B"


@pytest.mark.parametrize("token_type", ["word", "phn"])
def test_phonemes_keep_their_spaces_on_the_device(token_type: str, tmp_path: Path) -> None:
    """Also those that mean something to sherpa-onnx in other lists: SIL, which it leaves out, and the mark of words."""
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    changes = {"token_list": PHONES, "token_type": token_type}
    folder = small_of(tmp_path, "ctc.ctc_lo", changes, features=80)
    export(folder, options=ExportOptions(precisions=("fp32", "int8")))
    runtime = open_runtime("torch", folder)
    texts = [runtime.transcribe(wave) for wave in WAVES]
    assert {word for text in texts for word in text.split()} <= set(PHONES) - {"<blank>", "<unk>", "<sos/eos>"}
    assert sum(len(text.split()) for text in texts) > 10
    for kind in ("onnxruntime", "sherpa-onnx"):
        assert [open_runtime(kind, folder / "onnx").transcribe(wave) for wave in WAVES] == texts
    speech = [Speech(f"utt{n}", wave, text) for n, (wave, text) in enumerate(zip(WAVES, texts))]
    report = check_parity(folder, folder / "onnx", speech)
    assert report.first_fault is None and {rate.wer for rate in report.rates} == {0.0}
