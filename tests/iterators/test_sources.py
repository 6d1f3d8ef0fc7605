"""Cuts of manifests and Shar folders: each rank has its own, and the data at their places are lhotse's."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from lhotse import CutSet

from espnet_todm.errors import UserError
from espnet_todm.iterators.sources import Share, open_source
from tests.iterators.made import audio_cuts, joined, write_manifest, write_shar
from tests.tiny_corpus import truncate

LENGTHS = [0.5 + 0.1 * n for n in range(7)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cuts.jsonl.gz, and its audio as a Shar folder of four shards."""
    folder = tmp_path_factory.mktemp("corpus")
    cuts = audio_cuts(folder / "audio", LENGTHS)
    write_manifest(cuts, folder / "cuts.jsonl.gz")
    write_shar(cuts, folder / "shar", 2)
    return folder


def open_recording(path: Path) -> Any:
    return open_source(str(path), "recording", "iterator_conf.train")


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "shar"])
def test_the_ranks_share_the_cuts(corpus: Path, name: str) -> None:
    source = open_recording(corpus / name)
    whole = [cut.id for cut in source.cuts()]
    parts = [[cut.id for cut in source.cuts(Share(rank, 3), "seed")] for rank in range(3)]
    assert whole == [f"cut{n:03d}" for n in range(7)]
    assert sorted(joined(parts)) == whole and all(parts)


def test_shards_are_shuffled_by_the_seed(corpus: Path) -> None:
    source = open_recording(corpus / "shar")
    orders = {seed: [cut.id for cut in source.cuts(order=seed)] for seed in "abcdef"}
    assert len({tuple(order) for order in orders.values()}) > 1
    assert orders["a"] == [cut.id for cut in source.cuts(order="a")]


def test_data_at_their_places_are_what_lhotse_reads_in_order(corpus: Path) -> None:
    source = open_recording(corpus / "shar")
    expected = {cut.id: cut.load_audio() for cut in CutSet.from_shar(in_dir=corpus / "shar")}
    found = {cut.id: source.fill(cut).load_audio() for cut in reversed(list(source.cuts()))}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_more_ranks_than_shards(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"shar: 4 shards, but 5 ranks, and each needs a shard; write smaller shards"):
        next(open_recording(corpus / "shar").cuts(Share(0, 5)))


def lose(name: str) -> Callable[[Path], Any]:
    return lambda shar: (shar / name).unlink()


def lose_field(shar: Path) -> None:
    for path in shar.glob("recording.*"):
        path.rename(path.with_name(path.name.replace("recording", "features")))


def lose_cuts(shar: Path) -> None:
    for path in shar.glob("cuts.*"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lose("recording.000001.tar"),
            "iterator_conf.train: .*lacks recording.000001.tar; 1 of 4 shards have no recording; write them",
        ),
        (lose_field, "its shards have no field recording; they have: features; features: stored needs features"),
        (lose_cuts, "no Shar folder: it has no cuts.000000.jsonl.gz"),
        (shutil.rmtree, "no such file or folder"),
    ],
)
def test_a_shar_folder_that_is_not_whole(
    corpus: Path, tmp_path: Path, harm: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(corpus / "shar", tmp_path / "shar")
    harm(tmp_path / "shar")
    with pytest.raises(UserError, match=message) as caught:
        open_recording(tmp_path / "shar")
    assert "\n" not in str(caught.value)


def swap(shar: Path) -> None:
    shutil.copyfile(shar / "recording.000001.tar", shar / "recording.000000.tar")


def empty(shar: Path) -> None:
    shutil.copyfile(shar / "recording.000003.tar", shar / "recording.000000.tar")  # of one cut


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda shar: truncate(shar / "recording.000000.tar", 0.3), r"recording.000000.tar: (cut off|damaged)"),
        (swap, "recording.000000.tar: cut000 is expected at place 0, but cut002.flac is there"),
        (lambda shar: truncate(shar / "cuts.000000.jsonl.gz"), r"cuts.000000.jsonl.gz: damaged .*; write it again"),
        (empty, "recording.000000.tar: "),
    ],
)
def test_damaged_shards(corpus: Path, tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    shutil.copytree(corpus / "shar", tmp_path / "shar")
    harm(tmp_path / "shar")
    source = open_recording(tmp_path / "shar")
    with pytest.raises(UserError, match=message) as caught:
        for cut in source.cuts():
            source.fill(cut)
    assert "\n" not in str(caught.value)


def test_manifests_of_other_things(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cuts are in .jsonl or .jsonl.gz, or in a Shar folder"):
        open_recording(corpus / "audio" / "cut000.flac")
    with pytest.raises(UserError, match=r"cut000: has no features; features: stored needs features"):
        next(open_source(str(corpus / "cuts.jsonl.gz"), "features", "train").cuts())
    other = tmp_path / "cuts.jsonl"
    text = gzip.decompress((corpus / "cuts.jsonl.gz").read_bytes()).decode()
    other.write_text(text.replace('"type": "file"', '"type": "command"').replace('"type":"file"', '"type":"command"'))
    with pytest.raises(UserError, match=r"cut000: its audio is a command .*, not a file"):
        next(open_recording(other).cuts())
    other.write_text('{"id": "a", "type": "MixedCut"}\n')
    with pytest.raises(UserError, match=r"holds MixedCut, but cuts of one channel"):
        next(open_recording(other).cuts())
