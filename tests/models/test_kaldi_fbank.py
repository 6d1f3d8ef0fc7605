"""Kaldi's filterbank as a front end: the features of stage 3 and of devices, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espnet_todm.deploy.runtime.fbank import fbank
from espnet_todm.errors import UserError
from espnet_todm.models.kaldi_fbank import KaldiFbank, on_features
from tests.tiny_model import tiny_model


def padded(waves: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.from_numpy(wave) for wave in waves]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(wave) for wave in waves])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(0, 99))
def test_each_utterance_has_the_features_of_stage_3(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    waves = [rng.normal(scale=0.1, size=length).astype(np.float32) for length in lengths]
    features, frames = KaldiFbank()(*padded(waves))
    expected = [fbank(wave) for wave in waves]
    assert frames.tolist() == [len(rows) for rows in expected]
    assert features.size(1) == max(1, *frames.tolist())
    for one, rows in zip(features, expected):
        np.testing.assert_allclose(one[: len(rows)].numpy(), rows, atol=2e-3)
        assert not one[len(rows) :].any()


def test_silence_and_other_numbers_of_bins() -> None:
    wave = np.zeros(1600, dtype=np.float32)
    features, _ = KaldiFbank(fs="16k", n_mels=23)(*padded([wave]))
    np.testing.assert_allclose(features[0].numpy(), fbank(wave, 23))


def test_the_frontend_conf_of_espnets_recipes_may_stay() -> None:
    wave = np.zeros(1600, dtype=np.float32)
    kept = KaldiFbank(fs="16k", n_fft=512, win_length=400, hop_length=160)
    torch.testing.assert_close(kept(*padded([wave])), KaldiFbank()(*padded([wave])))


def test_nothing_of_it_is_in_checkpoints() -> None:
    assert KaldiFbank().state_dict() == {} and not list(KaldiFbank().parameters())


def test_a_model_on_audio_becomes_one_on_features() -> None:
    model = tiny_model()
    model.frontend = KaldiFbank(n_mels=20)
    same, config = on_features(model, {"frontend": "todm_fbank", "frontend_conf": {"n_mels": 20}, "input_size": None})
    assert same is model and model.frontend is None
    assert config == {"frontend": None, "frontend_conf": {}, "input_size": 20}
    model.frontend = nn.Identity()
    assert on_features(model, {"frontend": "other"}) == (model, {"frontend": "other"})
    assert isinstance(model.frontend, nn.Identity)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"fs": 8000}, "frontend_conf.fs: 8000; allowed: 16000"),
        ({"fs": "8k"}, "frontend_conf.fs: 8k; allowed: 16000"),
        ({"fs": "fast"}, "frontend_conf.fs: 'fast'; needed: a number of Hz"),
        ({"n_mels": 3}, "frontend_conf.n_mels: 3"),
        ({"n_fft": 400, "hop_length": 160}, "frontend_conf.n_fft: 400; allowed: 512, as on devices; leave it out"),
        ({"win_length": 512}, "frontend_conf.win_length: 512; allowed: 400"),
        ({"hop_length": 128}, "frontend_conf.hop_length: 128; allowed: 160"),
    ],
)
def test_what_no_device_computes_is_refused(conf: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        KaldiFbank(**conf)


def test_several_channels_are_refused() -> None:
    with pytest.raises(UserError, match="frontend: todm_fbank: audio of 2 channels; needed: one channel"):
        KaldiFbank()(torch.zeros(1, 1600, 2), torch.tensor([1600]))
