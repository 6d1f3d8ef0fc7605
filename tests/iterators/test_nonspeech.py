"""A share of the training utterances becomes non-speech with an empty transcript, and such batches train every task."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import espnet_todm
from espnet_todm.data.features import fbank_extractor
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import parse_training
from espnet_todm.espnet.task_options import check_training
from espnet_todm.iterators import nonspeech as module
from espnet_todm.iterators.nonspeech import NonSpeech, WithNonSpeech, with_nonspeech
from espnet_todm.models.batch import Batch
from espnet_todm.trainers.kd import KDTrainer
from tests.mock.cases import CASES
from tests.tiny_model import run, tiny_model
from tests.tiny_training import arguments, python, write_config, write_data

espnet_todm.register()


def stock(name: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"speech": data["speech"], "text": np.array([3, 4, 5])}


def passed(share: float, speech: np.ndarray, times: int) -> list[dict[str, np.ndarray]]:
    np.random.seed(0)
    preprocess = pickle.loads(pickle.dumps(WithNonSpeech(stock, NonSpeech(share, begin=0), epochs=1)))
    return [preprocess("a", {"speech": speech}) for _ in range(times)]


@pytest.mark.parametrize("shape", [(16000,), (99, 80), (1, 80)])
def test_a_share_is_replaced_and_keeps_its_length(shape: tuple[int, ...]) -> None:
    speech = np.full(shape, 0.5, dtype=np.float32)
    arrays = passed(0.2, speech, 200)
    replaced = [one for one in arrays if not np.array_equal(one["speech"], speech)]
    assert 20 <= len(replaced) <= 60
    assert all(one["speech"].shape == shape and one["speech"].dtype == np.float32 for one in arrays)
    assert all(len(one["text"]) == 0 for one in replaced)
    assert sum(len(one["text"]) == 3 for one in arrays) == 200 - len(replaced)
    again = passed(0.2, speech, 200)
    assert all(np.array_equal(one["speech"], other["speech"]) for one, other in zip(arrays, again))


def test_features_are_those_of_stage_3(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = np.random.default_rng(0).normal(scale=0.1, size=99 * 160).astype(np.float32)
    monkeypatch.setattr(module, "sound_of", lambda kind, samples, rng: sound[:samples])
    (one,) = passed(0.999, np.zeros((99, 80), np.float32), 1)
    np.testing.assert_allclose(one["speech"], fbank_extractor(16000).extract(sound, 16000), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["kd", "kd, CTC/attention", "kd, RNN-T", "kd, pruned RNN-T", "two_stage, second stage"]
)
@pytest.mark.parametrize("empty", [[1], [0, 1, 2]])
def test_every_task_trains_on_empty_transcripts(name: str, empty: list[int]) -> None:
    """Next to others, and in a batch of nothing else; the gradient has no NaN."""
    model = CASES[name].build().train()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([0 if row in empty else 3 for row in range(3)])
    text = torch.randint(2, 8, (3, int(lengths.max())), generator=generator)
    text = text.masked_fill(torch.arange(text.size(1)) >= lengths[:, None], -1)
    batch = Batch(torch.randn(3, 60, 20, generator=generator), torch.full((3,), 60), text, lengths)
    loss, _ = run(model, batch, 2)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_model_learns_to_write_nothing() -> None:
    model = tiny_model().train()
    model.subnet_trainer = KDTrainer(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = Batch(
        torch.randn(2, 60, 20), torch.tensor([60, 60]), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0])
    )
    losses = []
    for step in range(15):
        loss, _ = run(model, batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nonspeech_conf\.share: 0 is not allowed"):
        NonSpeech(0)
    assert with_nonspeech(Namespace(), stock) is stock
    data = write_data(tmp_path / "data")
    for changes, words in (
        ({"nonspeech_conf": {"share": 0.1}}, "nonspeech_conf: .* is for nonspeech: made, but there is no nonspeech"),
        ({"nonspeech": "made", "nonspeech_conf": {"share": 2}}, "nonspeech_conf.share: 2 is not allowed"),
        ({"nonspeech": "made", "nonspeech_conf": {"begin": 1}}, r"nonspeech_conf\.begin: 1 is not allowed"),
        ({"nonspeech": "made", "nonspeech_conf": {"part": 2}}, "nonspeech_conf: unknown key 'part'"),
        ({"nonspeech": "loud"}, "nonspeech: .*loud"),
    ):
        write_config(data / "config.yaml", **changes)
        with pytest.raises(UserError, match=words) as error:
            check_training(parse_training(arguments(data, tmp_path / "exp")))
        assert "\n" not in str(error.value)
    write_config(data / "config.yaml", nonspeech="made")
    options = parse_training(arguments(data, tmp_path / "exp", "--use_preprocessor", "false"))
    with pytest.raises(UserError, match=r"nonspeech: made needs use_preprocessor: true"):
        check_training(options)


@pytest.mark.recipe
def test_a_training_with_non_speech(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_config(data / "config.yaml", nonspeech="made", nonspeech_conf={"share": 0.6}, num_workers=1)
    done = python(["-m", "espnet_todm.bin.asr_train", *arguments(data, tmp_path / "exp")])
    assert done.returncode == 0, done.stderr[-2000:]
    weights = [torch.load(tmp_path / f"exp/{epoch}epoch.pth", weights_only=True) for epoch in (1, 3)]
    write_config(data / "config.yaml", num_workers=1)
    assert python(["-m", "espnet_todm.bin.asr_train", *arguments(data, tmp_path / "without")]).returncode == 0
    others = [torch.load(tmp_path / f"without/{epoch}epoch.pth", weights_only=True) for epoch in (1, 3)]
    same = [all(torch.equal(one[key], other[key]) for key in one) for one, other in zip(weights, others)]
    assert same == [True, False]  # it begins in the second of three epochs
