"""Stages 1 and 2 by jobs leave what one process leaves."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from espnet_todm.data import pieces
from espnet_todm.data.corpus import perturb_speed, prepare_split
from espnet_todm.data.pieces import in_one
from espnet_todm.data.tables import read_cuts
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_table
from tests.tiny_corpus import audio_path, write_split


def launch_here(function: Callable[[Any], Any], arguments: Sequence[Any], **how: Any) -> list[Any]:
    """What goes to jobs is pickled."""
    assert len(arguments) > 1 and how["jobs"] == 2
    return [function(pickle.loads(pickle.dumps(one))) for one in arguments]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 4)
    monkeypatch.setattr(pieces, "launch", launch_here)


def content(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in files.items()}


def test_jobs_leave_the_same_folder(tmp_path: Path) -> None:
    names = write_split(tmp_path, "a", speakers=3, utterances=5)
    audio_path(tmp_path, "a", names[0]).unlink()
    audio_path(tmp_path, "a", names[7]).write_bytes(b"no audio")
    arguments: Any = (tmp_path / "LibriSpeech", "a", ["a"])
    one, two = prepare_split(*arguments, tmp_path / "1"), prepare_split(*arguments, tmp_path / "2", jobs=2)
    assert content(one) == content(two) and len(read_table(two / "text")) == 13
    copies = [perturb_speed(data, data.parent / "a_sp", [0.9], **how) for data, how in ((one, {}), (two, {"jobs": 2}))]
    first, second = map(content, copies)
    assert first == second and len(list(read_cuts(copies[1]))) == 26


def test_nothing_usable_is_an_error_here_too(tmp_path: Path) -> None:
    for name in write_split(tmp_path, "a", utterances=5):
        audio_path(tmp_path, "a", name).write_bytes(b"")
    with pytest.raises(UserError, match="a: none of 10 utterances can be used; "):
        prepare_split(tmp_path / "LibriSpeech", "a", ["a"], tmp_path / "data", jobs=2)
    assert not (tmp_path / "data" / "a").exists()


def test_one_piece_or_one_job_needs_no_jobs() -> None:
    assert in_one(4, {"jobs": 8, "launcher": "slurm"}) and in_one(5, {}) and in_one(5, {"jobs": 1})
    assert not in_one(5, {"jobs": 2}) and not in_one(5, {"jobs": 1, "launcher": "slurm"})
