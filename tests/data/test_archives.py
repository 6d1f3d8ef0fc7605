"""Tables and archives of features: no command in them is run, no pickle is read, in any form that kaldiio knows."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kaldiio import matio
from kaldiio.utils import open_like_kaldi

from espnet_todm.data.archives import is_pipe, refuse_code
from espnet_todm.decode.features import read_features
from espnet_todm.errors import UserError

# ARK and RAN are replaced by an archive and a file that the command makes.
COMMANDS = (
    *(
        "touch RAN; cat ARK |",
        "touch RAN; cat ARK|",
        "touch RAN; cat ARK | ",
        "touch RAN; cat ARK |:0",
        "touch RAN; cat ARK | :0",
    ),
    *(
        "touch RAN; cat ARK |:0[0:3]",
        "touch RAN; cat ARK |[0:3]",
        "| touch RAN; cat ARK",
        "touch RAN; cat ARK | [ 0:3 ]",
    ),
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What other tests of this process may have switched off is on again, and afterwards off."""
    matio.open_like_kaldi, matio.pickle = open_like_kaldi, pickle
    yield
    refuse_code()


def _table(folder: Path, place: str) -> Path:
    path, archive, ran = folder / "feats.scp", folder / "one.ark", folder / "ran"
    kaldiio.save_mat(str(archive), np.ones((5, 2), dtype=np.float32))
    path.write_text("u1 " + place.replace("ARK", str(archive)).replace("RAN", str(ran)) + "\n")
    return path


def _espnet(scp: Path) -> Any:
    """As a training and as decoding read a table."""
    from espnet2.train.dataset import DATA_TYPES

    return DATA_TYPES["kaldi_ark"]["func"](str(scp), None, 0)["u1"]


@pytest.mark.parametrize("place", COMMANDS)
def test_no_command_in_a_table_is_run(tmp_path: Path, place: str) -> None:
    scp = _table(tmp_path, place)
    refuse_code()
    with pytest.raises(
        UserError, match=r"feats\.scp: u1 is a shell command .*; pipes are not run, write the audio out"
    ):
        list(read_features(scp))
    try:
        _espnet(scp)
    except UserError as error:
        assert "a shell command in a table of data; pipes are not run" in str(error)
    except OSError:
        pass  # of a form that kaldiio takes for a file
    assert not (tmp_path / "ran").exists()


def test_stock_commands_run_them_as_kaldi_does(tmp_path: Path) -> None:
    scp = _table(tmp_path, COMMANDS[0])
    refuse_code(pipes=False)
    assert _espnet(scp).shape == (5, 2)
    assert (tmp_path / "ran").exists()


def test_a_command_in_place_of_a_table_is_not_run(tmp_path: Path) -> None:
    refuse_code()
    with pytest.raises(UserError, match="a shell command in a table of data"):
        _espnet(Path(f"touch {tmp_path}/ran |"))
    assert not (tmp_path / "ran").exists()


def _runs(place: str) -> bool:
    """Whether kaldiio would run this entry."""
    try:
        name = matio._parse_arkpath(place)[0].strip()
    except Exception:
        return False
    return name.endswith("|") or name.startswith("|")


@given(st.text("|:[]0 5a,\t\u0665-_", min_size=1, max_size=12).filter(str.strip))
@example("x |:5[0:3]")
@example("echo ] |[0:3")
def test_what_kaldiio_would_run_is_a_pipe(place: str) -> None:
    assert is_pipe(place) or not _runs(place)


@pytest.mark.parametrize("place", ["a.ark:5", "a.ark:5[0:3]", "/data/a|b/c.wav", "a.wav", "AC|DC.flac", "a.ark"])
def test_files_are_no_pipes(place: str) -> None:
    assert not is_pipe(place)


class _Runs:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("pipes", [True, False])
def test_a_pickle_in_an_archive_is_not_read(tmp_path: Path, pipes: bool) -> None:
    (tmp_path / "one.ark").write_bytes(b"PKL" + pickle.dumps(_Runs(tmp_path / "ran")))
    (tmp_path / "feats.scp").write_text(f"u1 {tmp_path}/one.ark\n")
    refuse_code(pipes)
    with pytest.raises(UserError, match=r"one\.ark: holds a pickle, which could run code"):
        _espnet(tmp_path / "feats.scp")
    refuse_code()
    with pytest.raises(UserError, match=r"one\.ark: holds a pickle"):
        list(read_features(tmp_path / "feats.scp"))
    assert not (tmp_path / "ran").exists()
    assert kaldiio.load_mat(str(_matrix(tmp_path))).shape == (5, 2)


def _matrix(folder: Path) -> Path:
    kaldiio.save_mat(str(folder / "two.ark"), np.ones((5, 2), dtype=np.float32))
    return folder / "two.ark"
