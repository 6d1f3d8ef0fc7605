"""Batches have what ESPnet's tables and stage 3 give, noise at its ratio, and errors that name the utterance."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet
from lhotse.cut import MonoCut

from espnet_todm.data.features import fbank_extractor
from espnet_todm.errors import UserError
from espnet_todm.iterators.batches import Drawn
from espnet_todm.iterators.loading import BatchReader, read_noise
from espnet_todm.iterators.sources import open_source
from tests.iterators.made import audio_cuts, options, write_manifest, write_shar


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    cuts = audio_cuts(folder / "audio", [0.5, 0.7])
    write_manifest(cuts, folder / "cuts.jsonl.gz")
    write_shar(cuts, folder / "shar", 1)
    write_manifest(audio_cuts(folder / "noise", [0.2, 3.0]), folder / "noise.jsonl.gz")
    return folder


def reader(path: Path, noise: Any = (), **changes: Any) -> BatchReader:
    wanted = options(**changes)
    source = open_source(str(path), wanted.field, "train")
    return BatchReader(source, wanted, lambda name, arrays: {"speech": arrays["speech"]}, list, noise=noise)


def read(path: Path, noise: Any = (), seed: str = "0", **changes: Any) -> dict[str, np.ndarray]:
    one = reader(path, noise, **changes)
    cuts = list(one.source.cuts())
    return {name: arrays["speech"] for name, arrays in one[Drawn(cuts, seed)]}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "shar"])
def test_audio_and_its_features(corpus: Path, name: str) -> None:
    audio = {cut.id: cut.load_audio() for cut in CutSet.from_file(corpus / "cuts.jsonl.gz")}
    heard, features = read(corpus / name), read(corpus / name, features="on_the_fly")
    assert heard.keys() == audio.keys()
    for name, samples in audio.items():
        assert np.array_equal(heard[name], samples[0]) and heard[name].dtype == np.float32
        assert np.array_equal(features[name], fbank_extractor().extract(samples, 16000))


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "shar"])
def test_another_speed(corpus: Path, name: str) -> None:
    from espnet_todm.iterators.batches import CutBatches

    one = reader(corpus / name, speed_factors=[1.1])
    (drawn,) = CutBatches(one.source, one.options).of_pass(0)
    found = {name: arrays["speech"] for name, arrays in one[drawn]}  # type: ignore[misc]
    expected = {cut.id: cut.load_audio()[0] for cut in CutSet.from_file(corpus / "cuts.jsonl.gz").perturb_speed(1.1)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_noise_is_a_function_of_the_batch_and_has_its_ratio(corpus: Path) -> None:
    noise = read_noise(str(corpus / "noise.jsonl.gz"), 16000)
    clean = read(corpus / "shar")
    how = {"noise_share": 1.0, "noise_snr": 10.0}
    mixed, again = read(corpus / "shar", noise, **how), read(corpus / "shar", noise, **how)
    other = read(corpus / "shar", noise, seed="1", **how)
    for name, samples in clean.items():
        assert np.array_equal(mixed[name], again[name]) and not np.array_equal(mixed[name], other[name])
        assert mixed[name].shape == samples.shape
        added = mixed[name] - samples
        assert 10 * np.log10(np.mean(samples**2) / np.mean(added**2)) == pytest.approx(10, abs=1.5)
        assert np.abs(added[-800:]).max() > 1e-3  # up to the end
    quiet = read(corpus / "shar", noise, noise_share=0.0)
    assert all(np.array_equal(quiet[name], clean[name]) for name in clean)


def test_a_share_of_the_utterances_gets_noise(corpus: Path) -> None:
    one = reader(corpus / "shar", read_noise(str(corpus / "noise.jsonl.gz"), 16000), noise_share=0.3)
    cut: MonoCut = one.source.fill(next(one.source.cuts()))
    rng = Random(0)
    assert sum(one._noisy(cut, rng) is not cut for _ in range(200)) == pytest.approx(60, abs=20)


def test_what_cannot_be_read_names_the_utterance(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    cuts = audio_cuts(tmp_path / "audio", [0.5])
    write_manifest(cuts, path)
    (tmp_path / "audio" / "cut000.flac").unlink()
    with pytest.raises(UserError, match=r"cut000: its audio is gone: .*cut000.flac: no such file") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    (tmp_path / "audio" / "cut000.flac").write_bytes(b"no audio")
    with pytest.raises(UserError, match=r"cut000: its audio cannot be read: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cut000: 16000 Hz, but iterator_conf.sampling_rate is 8000 Hz"):
        read(corpus / "shar", sampling_rate=8000)
    cuts = CutSet.from_cuts(cut.drop_supervisions() for cut in audio_cuts(tmp_path / "audio", [0.5]))
    with pytest.raises(UserError, match=r"cut000: its supervisions have no text"):
        read(write_manifest(cuts, path))


def test_a_manifest_of_noise(corpus: Path, tmp_path: Path) -> None:
    assert read_noise(None, 16000) == []
    assert all(not cut.supervisions for cut in read_noise(str(corpus / "noise.jsonl.gz"), 16000))
    with pytest.raises(UserError, match=r"iterator_conf.noise: .*gone.jsonl: no such file"):
        read_noise(str(tmp_path / "gone.jsonl"), 16000)
    with pytest.raises(UserError, match=r"iterator_conf.noise: .*: cut000: 16000 Hz, but 8000 Hz is needed"):
        read_noise(str(corpus / "noise.jsonl.gz"), 8000)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty.jsonl: holds no cut"):
        read_noise(str(tmp_path / "empty.jsonl"), 16000)
