"""The packed features give back what was rounded, for any lengths, and say what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.corpus import TOKENS, in_batches, load, synthetic, training_batches, unpack
from benchmarks.gpu.features import Utterance, read_corpus, write_corpus
from espnet_todm.errors import UserError


def speech(lengths: list[int], bands: int = 13) -> list[Utterance]:
    """Random walks between -16 and 8, as log energies are."""
    generator = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        walk = np.cumsum(generator.normal(0, 1, (length, bands)), axis=0) + generator.normal(-5, 3, bands)
        made.append(Utterance(f"u{number}", f"TEXT {number}", walk.clip(-16, 8).astype(np.float32)))
    return made


@pytest.mark.parametrize("step", [0.25, 0.5])
def test_values_come_back_rounded(tmp_path: Path, step: float) -> None:
    corpus = {"a": speech([1, 40, 7, 40, 2]), "b": speech([3])}
    write_corpus(tmp_path / "features.npz", corpus, step)
    back = read_corpus(tmp_path / "features.npz")
    assert list(back) == ["a", "b"]
    for split, given in corpus.items():
        before = {u.name: u for u in given}
        assert [len(u.features) for u in back[split]] == sorted((len(u.features) for u in given), reverse=True)
        for utterance in back[split]:
            original = before[utterance.name]
            assert utterance.text == original.text and utterance.features.dtype == np.float32
            assert np.array_equal(utterance.features, np.rint(original.features / step) * np.float32(step))


def test_one_split_can_be_read(tmp_path: Path) -> None:
    write_corpus(tmp_path / "features.npz", {"a": speech([4]), "b": speech([3])})
    assert list(read_corpus(tmp_path / "features.npz", ["b"])) == ["b"]
    with pytest.raises(UserError, match="no split 'c'; it has a, b"):
        read_corpus(tmp_path / "features.npz", ["c"])


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; benchmarks/gpu_pack"):
        read_corpus(tmp_path / "features.npz")
    with pytest.raises(UserError, match="no utterances"):
        write_corpus(tmp_path / "features.npz", {"a": []})
    jump = Utterance("u", "", np.array([[0.0], [500.0]], np.float32))
    with pytest.raises(UserError, match="more than 127 steps"):
        write_corpus(tmp_path / "features.npz", {"a": [jump]})


def test_batches_are_a_function_of_seed_and_update(tmp_path: Path) -> None:
    write_corpus(tmp_path / "features.npz", synthetic(12))
    for _ in range(2):  # the second time there is nothing to do
        unpack(tmp_path / "features.npz", tmp_path / "corpus")
    split = load(tmp_path / "corpus", "train", torch.device("cpu"))
    every, later = training_batches(split, 8.0, seed=3), training_batches(split, 8.0, seed=3, first=4)
    batches = [next(every) for _ in range(7)]
    for batch in batches[4:]:
        again = next(later)
        assert batch.speech.equal(again.speech) and batch.text.equal(again.text)
    assert all(int(batch.speech_lengths.max()) <= batch.speech.shape[1] for batch in batches)
    normal = split.batch(range(len(split.lengths)))
    assert normal.speech_lengths.tolist() == list(split.lengths)
    valid = np.concatenate([x[:n] for x, n in zip(normal.speech.numpy(), split.lengths)])
    assert np.abs(valid.mean(0)).max() < 1e-3 and np.abs(valid.std(0) - 1).max() < 1e-2
    text = normal.text[0][: normal.text_lengths[0]].tolist()
    assert "".join(TOKENS[t] for t in text).replace("<space>", " ") == split.texts[0]


def test_batches_hold_at_most_the_speech_asked_for() -> None:
    lengths = [100, 200, 300, 50, 1000]
    batches = in_batches([0, 1, 2, 3, 4], lengths, 6.0)
    assert batches == [[0, 1], [2, 3], [4]]  # 600 frames with padding; a longer utterance is alone
