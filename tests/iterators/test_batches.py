"""Batches are a function of seed, pass and rank, hold each cut once in a pass, and keep their bounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from espnet_todm.errors import UserError
from espnet_todm.iterators.batches import CutBatches, Drawn, shared
from espnet_todm.iterators.sources import Share, open_source
from tests.iterators.made import audio_cuts, joined, options, write_manifest

LENGTHS = [0.4 + 0.05 * (n * 7 % 20) for n in range(40)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(audio_cuts(folder / "audio", LENGTHS), folder / "cuts.jsonl.gz")
    return open_source(str(folder / "cuts.jsonl.gz"), "recording", "train")


def names(batches: Iterable[Drawn]) -> list[list[str]]:
    return [[cut.id for cut in drawn.cuts] for drawn in batches]


def test_a_pass_is_a_function_of_seed_and_number(source: Any) -> None:
    batches = CutBatches(source, options(), seed=1)
    first = names(batches.of_pass(0))
    assert first == names(CutBatches(source, options(), seed=1).of_pass(0))
    assert first != names(batches.of_pass(1)) and first != names(CutBatches(source, options(), seed=2).of_pass(0))
    assert sorted(joined(first)) == sorted(joined(names(batches.of_pass(1)))) == [f"cut{n:03d}" for n in range(40)]


@pytest.mark.parametrize("quadratic", [None, 2.0])
def test_batches_keep_max_duration_and_hold_similar_lengths(source: Any, quadratic: Any) -> None:
    batches = [drawn.cuts for drawn in CutBatches(source, options(quadratic_duration=quadratic)).of_pass(0)]

    def counted(seconds: float) -> float:
        return seconds + (seconds**2 / quadratic if quadratic else 0)

    assert all(len(cuts) * max(counted(cut.duration) for cut in cuts) <= 5 for cuts in batches)
    within = [max(cut.duration for cut in cuts) - min(cut.duration for cut in cuts) for cuts in batches]
    assert max(within) < 0.6 < max(LENGTHS) - min(LENGTHS)
    assert max(map(len, names(CutBatches(source, options(max_cuts=3)).of_pass(0)))) == 3


def test_ranks_have_cuts_of_their_own_and_the_same_buckets(source: Any) -> None:
    ranks = [CutBatches(source, options(), share=Share(rank, 2)) for rank in range(2)]
    parts = [joined(names(rank.of_pass(0))) for rank in ranks]
    assert sorted(parts[0] + parts[1]) == [f"cut{n:03d}" for n in range(40)]
    assert ranks[0].bins == ranks[1].bins


def test_a_cut_that_is_longer_than_a_batch(source: Any) -> None:
    with pytest.raises(
        UserError, match=r"iterator_conf.max_duration: 1, but cut\d+ of .*cuts.jsonl.gz takes 1\.\d s; raise"
    ):
        list(CutBatches(source, options(max_duration=1.0)).of_pass(0))
    told = r"takes 1\.\d s \(counted as 2\.\d s by quadratic_duration\)"
    with pytest.raises(UserError, match=told):
        list(CutBatches(source, options(max_duration=2.0, quadratic_duration=1.0)).of_pass(0))
    bounded = options(max_duration=1.0, max_seconds=1.0, min_seconds=0.5)
    kept = joined(names(CutBatches(source, bounded).of_pass(0)))
    assert sorted(kept) == [f"cut{n:03d}" for n, length in enumerate(LENGTHS) if 0.5 <= round(length, 3) <= 1.0]
    with pytest.raises(UserError, match=r"no cut to read for rank 0 of 1, with min_seconds and max_seconds"):
        list(CutBatches(source, options(min_seconds=9)).of_pass(0))


def test_each_pass_reads_a_cut_at_another_speed(source: Any) -> None:
    batches = CutBatches(source, options(speed_factors=[0.9, 1.0, 1.1]))
    passes = [{cut.id: cut for drawn in batches.of_pass(number) for cut in drawn.cuts} for number in range(2)]
    speeds = [{name.partition("_sp")[0]: name.partition("_sp")[2] for name in one} for one in passes]
    assert set(speeds[0].values()) == {"0.9", "", "1.1"} and len(speeds[0]) == 40
    assert speeds[0] != speeds[1]
    assert all(
        cut.duration == pytest.approx(LENGTHS[int(n[3:6])] / float(n[9:] or 1), abs=1e-3)
        for n, cut in passes[0].items()
    )


def test_validation_takes_every_cut_as_it_is_and_its_ranks_share_each_batch(source: Any) -> None:
    wanted = options(speed_factors=[0.9], max_seconds=0.6)
    batches = CutBatches(source, wanted, training=False)
    whole = names(batches.of_pass(0))
    assert sorted(joined(whole)) == [f"cut{n:03d}" for n in range(40)]
    parts = [names(shared(batches.of_pass(0), Share(rank, 3))) for rank in range(3)]
    assert len(parts[0]) == len(parts[1]) == len(parts[2])
    assert sorted(joined(joined(parts))) == sorted(joined(whole))
    assert all(batch for part in parts for batch in part)
    assert names(shared(batches.of_pass(0), Share())) == whole


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, 1], [1, 5], [1, 1, 9, 1], [4, 4]])
def test_small_batches_are_joined(sizes: list[int]) -> None:
    cuts = iter(range(100))
    batches = [Drawn([next(cuts) for _ in range(size)], "") for size in sizes]  # type: ignore[misc]
    parts = [[drawn.cuts for drawn in shared(iter(batches), Share(rank, 3))] for rank in range(3)]
    assert sorted(joined(joined(parts))) == list(range(sum(sizes)))
    assert len({len(part) for part in parts}) == 1 and all(batch for part in parts for batch in part)


def test_fewer_cuts_than_ranks() -> None:
    with pytest.raises(UserError, match=r"iterator_conf.valid: 2 utterances, but 3 ranks share each batch"):
        list(shared(iter([Drawn([1, 2], "")]), Share(0, 3)))  # type: ignore[list-item]
