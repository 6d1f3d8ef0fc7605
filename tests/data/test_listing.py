"""Which files of a folder belong to a corpus, and where Kaldi's segments lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.data.listing import files_below, parse_segment
from espnet_todm.errors import UserError


def names(top: Path, *suffixes: str) -> list[str]:
    return [str(path.relative_to(top)) for path in files_below(top, suffixes or (".flac",))]


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_links_are_followed_once_each(tmp_path: Path) -> None:
    top, other = tmp_path / "split", tmp_path / "disk"
    write(top / "1" / "a.flac", other / "2" / "b.flac")
    (top / "2").symlink_to(other / "2")
    (top / "again").symlink_to(other / "2")
    (top / "1" / "loop").symlink_to(top)
    (top / "1" / "c.flac").symlink_to(other / "2" / "b.flac")
    assert names(top) == ["1/a.flac", "1/c.flac", "2/b.flac"]


def test_capitals_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    write(tmp_path / "1" / "a.FLAC", tmp_path / "1" / "b.Trans.TXT", tmp_path / "1" / "c.txt")
    write(tmp_path / "1" / "._a.FLAC", tmp_path / "__MACOSX" / "1" / "._a.flac", tmp_path / ".Trashes" / "d.flac")
    assert names(tmp_path, ".flac", ".trans.txt") == ["1/a.FLAC", "1/b.Trans.TXT"]


def test_links_to_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1" / "a.flac")
    (tmp_path / "2").symlink_to(tmp_path / "unmounted")
    (tmp_path / "1" / "b.flac").symlink_to("gone.flac")
    assert names(tmp_path) == ["1/a.flac"]
    assert len(caplog.records) == 1
    assert f"{tmp_path}: 2 links lead nowhere; first: {tmp_path}/2 -> {tmp_path}/unmounted" in caplog.text


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("talk 0.5 1.25", ("talk", 0.5, 1.25)),
        ("talk 0 1 0", ("talk", 0.0, 1.0)),  # with a channel
        ("talk 0 1 A", ("talk", 0.0, 1.0)),
        ("talk 2.5 -1", ("talk", 2.5, None)),
    ],
)
def test_segments_of_kaldi(value: str, wanted: tuple[str, float, float]) -> None:
    assert parse_segment(value, "segments: utt") == wanted


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("talk 0.5", "segments: utt: 'talk 0.5', but recording, start, end and at most a channel"),
        ("talk 0 1 A extra", "'talk 0 1 A extra', but recording"),
        ("talk 0,5 1,25", "start '0,5', end '1,25', but numbers of seconds are expected; write decimals with a point"),
        ("talk zero 1", "start 'zero', end '1', but numbers of seconds are expected$"),
        ("talk 2 1", "start 2, end 1, but 0 <= start < end"),
        ("talk -1 1", "start -1, end 1, but"),
        ("talk 0 nan", "end nan, but"),
        ("talk 0 inf", "end inf, but"),
        ("talk nan 1", "start nan, end 1, but"),
    ],
)
def test_wrong_segments_are_told_in_one_line(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_segment(value, "segments: utt")
    assert "\n" not in str(caught.value)
