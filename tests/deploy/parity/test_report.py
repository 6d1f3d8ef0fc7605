"""The limit of word errors, as it is checked before any work."""

from __future__ import annotations

from typing import Optional

import pytest

from espnet_todm.bin.export import main
from espnet_todm.deploy.parity.report import check_wer_points
from espnet_todm.errors import UserError


@pytest.mark.parametrize(
    ("points", "precisions", "words", "line"),
    [
        (-1.0, ["int8"], 1000, "limit of wer_points: -1.0 must be at least 0"),
        (float("nan"), ["int8"], 1000, "limit of wer_points: nan must be at least 0"),
        (1.0, ["fp32"], 1000, "max_wer_points: is a limit for int8 and fp16; --precision has none of them"),
        (1.0, ["int8"], None, "max_wer_points: is measured on speech, which --no_parity leaves out"),
    ],
)
def test_an_impossible_limit_is_named(points: float, precisions: list[str], words: Optional[int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_wer_points(points, precisions, words)


@pytest.mark.parametrize(("points", "words", "warned"), [(0.5, 180, True), (0.5, 2700, False), (0.0, 2700, True)])
def test_little_speech_is_warned_of(points: float, words: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    check_wer_points(points, ["fp32", "int8"], words)
    assert ("give more --utterances" in caplog.text) == warned


def test_no_limit_needs_no_speech() -> None:
    check_wer_points(None, ["fp32"], None)


def test_the_command_checks_it_first() -> None:
    with pytest.raises(UserError, match="max_wer_points: is measured on speech, which --no_parity leaves out"):
        main(["nowhere", "--no_parity", "--max_wer_points", "1"])
