"""Greedy decoding, and reading its input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from espnet_todm.bin.measure_rtf import main as rtf_main

from espnet_todm.bench.models.inputs import read_utterances
from espnet_todm.bin.decode import main as decode_main
from espnet_todm.decode.decode import Decoder, decode
from espnet_todm.decode.features import input_table, read_features, sampling_rate
from espnet_todm.decode.searches import best_paths
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_checkpoint
from espnet_todm.util.files import read_json, read_table
from tests.tiny_experiment import TOKENS


@pytest.fixture(scope="module")
def decoder(experiment: Path) -> Decoder:
    return Decoder(*load_checkpoint(experiment / "config.yaml", experiment / "model.pth"))


def test_repeats_and_blanks_collapse_and_special_tokens_are_silent(decoder: Decoder, monkeypatch) -> None:
    path = [TOKENS.index(t) for t in ["<blank>", "A", "A", "<blank>", "A", "<space>", "B", "B", "<sos/eos>"]]
    monkeypatch.setattr(
        decoder, "search", lambda encoded, _: best_paths(torch.tensor([path]), torch.tensor([len(path)]))
    )
    assert decoder([torch.randn(60, 20)]) == ["AA B"]


def test_batches_decode_as_single_utterances(decoder: Decoder, experiment: Path) -> None:
    utterances = list(read_features(experiment / "feats.scp"))
    together = dict(decode(decoder, utterances, batch_seconds=100))
    assert together == dict(decode(decoder, utterances, batch_seconds=0.1))
    assert any(together.values())  # an untrained model says something, if nonsense


def test_an_utterance_below_one_frame_gives_an_empty_text(decoder: Decoder) -> None:
    assert decoder([torch.randn(3, 20)]) == [""]
    assert decoder([torch.randn(3, 20), torch.randn(40, 20)])[0] == ""


@pytest.mark.parametrize("stock", [False, True])
def test_an_utterance_of_nothing_gives_an_empty_text(decoder: Decoder, stock: bool, monkeypatch) -> None:
    if stock:  # whose utterances are not padded together
        monkeypatch.setattr("espnet_todm.decode.decode.SupernetEncoder", type(None))
    nothing, speech = torch.zeros(0, 20), torch.randn(40, 20)
    assert decoder([nothing]) == [""] and decoder([]) == []
    alone = decoder([speech])
    assert decoder([nothing, speech, nothing]) == ["", *alone, ""]
    assert [len(x) for x in decoder.log_posteriors([nothing, speech])] == [0, len(decoder.log_posteriors([speech])[0])]


def test_stages_13_and_14_write_texts_and_real_time_factors(experiment: Path, tmp_path) -> None:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    for size in ("small", "full"):
        extract(supernet, supernet.encoder.find_subnet(size), tmp_path / "exp/subnets" / size)
    data = tmp_path / "dump/test"
    data.mkdir(parents=True)
    (data / "feats.scp").write_text((experiment / "feats.scp").read_text())
    exp = str(tmp_path / "exp")
    decode_main(
        ["--experiment", exp, "--data", str(tmp_path / "dump"), "--sets", "test", "--logs", str(tmp_path / "logs")]
    )
    for size in ("small", "full"):
        assert list(read_table(tmp_path / f"exp/decode/test/{size}/text")) == ["utt0", "utt1", "utt2"]
    rtf_main(["--experiment", exp, "--scp", str(data / "feats.scp")])
    figures = read_json(tmp_path / "exp/subnets/small/rtf.json")
    assert figures["utterances"] == 3 and figures["threads"] == 1 and 0 < figures["rtf_median"] <= figures["rtf_p95"]


def test_audio_tables_are_read(tmp_path) -> None:
    soundfile.write(tmp_path / "a.flac", np.linspace(-0.5, 0.5, 800), 16000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.flac\n")
    ((name, samples),) = read_features(tmp_path / "wav.scp")
    assert name == "a" and samples.shape == (800,) and samples.dtype == torch.float32
    assert input_table(tmp_path) == tmp_path / "wav.scp"


@pytest.mark.parametrize(
    ("line", "words"),
    [("a touch /tmp/never |", "pipes are not run"), ("a gone.ark:5", "cannot be read"), ("a gone.flac", "gone.flac")],
)
def test_unreadable_input_is_named(tmp_path, line: str, words: str) -> None:
    (tmp_path / "wav.scp").write_text(line + "\n")
    with pytest.raises(UserError, match=words):
        list(read_features(tmp_path / "wav.scp"))


def test_an_empty_set_is_refused(tmp_path) -> None:
    (tmp_path / "feats.scp").write_text("")
    with pytest.raises(UserError, match="empty"):
        list(read_features(tmp_path / "feats.scp"))
    (tmp_path / "feats.scp").unlink()
    with pytest.raises(UserError, match="neither"):
        input_table(tmp_path)


def test_audio_of_another_rate_or_number_of_channels_is_refused_where_it_matters(tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((800, 2)), 8000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    assert len(list(read_features(tmp_path / "wav.scp", rate=8000))) == 1
    with pytest.raises(UserError, match=r"wav.scp: a has 2 channel\(s\) of 8000 Hz, but 2 of 16000 Hz is needed"):
        list(read_features(tmp_path / "wav.scp", rate=16000))
    with pytest.raises(UserError, match=r"wav.scp: a has 2 channel\(s\) of 8000 Hz, but 1 of 16000 Hz is needed"):
        read_utterances(tmp_path / "wav.scp", 1, audio=True)


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        ({"frontend": "default", "frontend_conf": {"fs": "8k"}}, 8000),
        ({"frontend": "default", "frontend_conf": {"fs": 16000}}, 16000),
        ({"frontend": "default", "frontend_conf": {}}, None),
        ({"frontend": "todm_fbank", "frontend_conf": {}}, 16000),
        ({"frontend": "s3prl", "frontend_conf": None}, None),
        ({"frontend": None, "frontend_conf": {"fs": 16000}}, None),
    ],
)
def test_the_rate_is_what_the_front_end_says(config: dict, rate: object) -> None:
    assert sampling_rate(config) == rate
