"""Epochs go on where the last one ended, also after a resume; what would draw other batches is refused."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import pytest

from espnet_todm.errors import UserError
from espnet_todm.iterators.batches import CutBatches
from espnet_todm.iterators.position import TrainingBatches, check_other_iterator
from espnet_todm.iterators.sources import Share, open_source
from tests.iterators.made import audio_cuts, options, write_shar

PER_PASS = 40


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    return str(write_shar(audio_cuts(folder / "audio", [0.4 + 0.02 * n for n in range(PER_PASS)]), folder / "shar", 10))


def training(shar: str, per_epoch: Optional[int], seed: int = 0, ranks: int = 1, **changes: Any) -> TrainingBatches:
    source = open_source(shar, "recording", "train")
    return TrainingBatches(CutBatches(source, options(**changes), seed, Share(0, ranks)), per_epoch)


def epoch(batches: TrainingBatches, number: int) -> list[tuple[list[str], str]]:
    return [([cut.id for cut in drawn.cuts], drawn.seed) for drawn in batches.epoch(number)]


def test_epochs_cut_an_endless_row_of_passes(shar: str) -> None:
    row = training(shar, 5)
    passes = CutBatches(open_source(shar, "recording", "train"), options())
    whole = [[cut.id for cut in drawn.cuts] for number in range(4) for drawn in passes.of_pass(number)]
    found = [names for number in range(1, 6) for names, _ in epoch(row, number)]
    assert found == list(islice(whole, 25))


@pytest.mark.parametrize("per_epoch", [5, 8, None])
def test_a_resumed_training_draws_what_the_whole_one_does(shar: str, per_epoch: Optional[int]) -> None:
    whole = training(shar, per_epoch)
    expected, states = [], []
    for number in range(1, 6):
        expected.append(epoch(whole, number))
        states.append(copy.deepcopy(whole.state_dict()))
    for done in range(1, 5):
        resumed = training(shar, per_epoch)
        resumed.load_state_dict(states[done - 1])
        assert [epoch(resumed, number) for number in range(done + 1, 6)] == expected[done:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 2}, "ranks: 2, but the checkpoint was trained with 1"),
        ({"seed": 1}, "seed: 1, but the checkpoint was trained with 0"),
        ({"per_epoch": 6}, "num_iters_per_epoch: 6, but the checkpoint was trained with 5"),
        ({"max_duration": 6.0}, "iterator_conf.max_duration: 6.0, but the checkpoint was trained with 5.0"),
        ({"quadratic_duration": 15}, "iterator_conf.quadratic_duration: 15, but the checkpoint was trained with None"),
        ({"speed_factors": (0.9, 1.0)}, "iterator_conf.speed_factors: [0.9, 1.0]"),
        ({"buffer_size": 20}, "iterator_conf.buffer_size: 20, but the checkpoint was trained with 10000"),
    ],
)
def test_another_sampler_is_refused_and_may_begin_a_new_pass(shar: str, changes: dict[str, Any], message: str) -> None:
    before = training(shar, 5)
    epoch(before, 1)
    state = before.state_dict()
    given = {"per_epoch": 5, **changes}
    with pytest.raises(UserError) as caught:
        training(shar, **given).load_state_dict(state)
    assert message in str(caught.value) and "iterator_conf.resume: next_pass" in str(caught.value)
    assert "\n" not in str(caught.value)
    moved = training(shar, **given, resume="next_pass")
    moved.load_state_dict(state)
    assert moved.at == (1, 0) and len(moved.all_at) == given.get("ranks", 1)


def test_other_data_and_another_iterator_are_refused(shar: str, tmp_path: Path) -> None:
    before = training(shar, 5)
    other = write_shar(audio_cuts(tmp_path / "audio", [0.5 + 0.02 * n for n in range(40)]), tmp_path / "shar", 10)
    with pytest.raises(UserError, match=r"iterator_conf.train: its cuts have other lengths"):
        training(str(other), 5).load_state_dict(before.state_dict())
    with pytest.raises(UserError, match=r"iterator: lhotse, but the checkpoint was trained with another iterator"):
        training(shar, 5).load_state_dict(None)
    with pytest.raises(
        UserError, match=r"iterator: none, but the checkpoint was trained with lhotse and num_iters_per_epoch: 5"
    ):
        check_other_iterator(before.state_dict())


def test_whole_passes_may_go_on_otherwise(shar: str, caplog: pytest.LogCaptureFixture) -> None:
    before = training(shar, None)
    epoch(before, 1)
    now = training(shar, None, max_duration=6.0)
    now.load_state_dict(before.state_dict())
    assert "iterator_conf.max_duration: 6.0" in caplog.text and "new pass" in caplog.text
    check_other_iterator(before.state_dict())
    assert epoch(now, 2) == epoch(training(shar, None, max_duration=6.0), 2)
