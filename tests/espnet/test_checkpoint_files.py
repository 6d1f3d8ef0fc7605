"""Checkpoints: a flipped bit anywhere is found, code in them is not run, a full disk leaves the old one."""

from __future__ import annotations

import datetime
import os
import pickle
import random
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.espnet import checkpoint_files
from espnet_todm.espnet.checkpoint_files import (
    check_checkpoint,
    guarded_checkpoints,
    is_training_state,
    read_checkpoint,
    save_checkpoint,
)


def _states() -> dict[str, Any]:
    """What ESPnet's checkpoint.pth is made of, its reporter's numpy numbers and durations included."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    values = {"loss": np.float64(1.5), "acc": np.float32(0.5), "time": datetime.timedelta(seconds=3), "total_count": 7}
    return {
        "model": model.state_dict(),
        "reporter": {"stats": {1: {"valid": values}}, "epoch": 1},
        "optimizers": [optimizer.state_dict()],
        "schedulers": [{**schedule.state_dict(), "count": np.int64(3)}, None],
        "scaler": None,
    }


@pytest.fixture(params=[True, False], ids=["torch's", "ours"])
def unpickler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each restricted unpickler: torch's, and ours for torch before 2.6."""
    if request.param and not checkpoint_files._TORCH_RESTRICTS:
        pytest.skip("this torch's unpickler takes no further names")
    monkeypatch.setattr(checkpoint_files, "_TORCH_RESTRICTS", request.param)


@pytest.mark.parametrize("read", [read_checkpoint, check_checkpoint])
def test_what_espnet_writes_is_read(tmp_path: Path, unpickler: None, read: Any) -> None:
    states = _states()
    save_checkpoint(states, tmp_path / "checkpoint.pth")
    got = read(tmp_path / "checkpoint.pth")
    assert is_training_state(got) and not is_training_state(got["model"])
    assert got["reporter"] == states["reporter"] and got["schedulers"] == states["schedulers"]
    assert all(torch.equal(got["model"][name], value) for name, value in states["model"].items())
    assert type(got["schedulers"][0]["milestones"]) is Counter


def test_names_of_older_numpy_are_read(tmp_path: Path, unpickler: None) -> None:
    """numpy 1 calls the module of its scalars numpy.core, numpy 2 numpy._core."""
    torch.save({"value": np.float64(2.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for record in new.namelist():
            old.writestr(record, new.read(record).replace(b"numpy._core.", b"numpy.core."))
    assert read_checkpoint(tmp_path / "old.pth") == {"value": 2.5}


def test_files_of_torch_before_its_archives_are_read(tmp_path: Path, unpickler: None) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(check_checkpoint(tmp_path / "old.pth")["w"], torch.ones(2))


def _headers(path: Path) -> list[int]:
    """Places of all bytes of an archive that are not its tensors' data."""
    with zipfile.ZipFile(path) as archive:
        data = [(one.header_offset + 64, one.header_offset + 64 + one.file_size) for one in archive.infolist()]
        data = [(start, end) for (start, end), one in zip(data, archive.infolist()) if one.file_size > 1000]
    return [place for place in range(path.stat().st_size) if not any(start <= place < end for start, end in data)]


def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path) -> None:
    """torch itself reads most of these files without a word."""
    path, flipped = tmp_path / "3epoch.pth", tmp_path / "flipped.pth"
    weights = {f"w{n}": torch.randn(40, 40) for n in range(3)}
    torch.save(weights, path)
    raw, rng = path.read_bytes(), random.Random(0)
    places = [rng.randrange(len(raw)) for _ in range(100)] + rng.sample(_headers(path), 300)
    refused = 0
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        try:
            got = read_checkpoint(flipped)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{flipped}: ") and "\n" not in str(error)
        else:
            assert all(torch.equal(got[name], value) for name, value in weights.items()), place
    assert refused > 150  # the others are between records, where nothing is read


def test_a_record_that_claims_to_be_a_folder_is_damage(tmp_path: Path) -> None:
    """torch reads zeros for it; its sum still holds."""
    path = tmp_path / "1epoch.pth"
    torch.save({"w": torch.ones(500)}, path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start, name = archive.start_dir, next(n for n in archive.namelist() if n.endswith("data/0"))
    attributes = raw.index(name.encode(), start) - 8  # of the entry in the archive's directory
    raw[attributes] ^= 0x10
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"1epoch\.pth: damaged: \S*data/0 in it is not what was written"):
        check_checkpoint(path)


@pytest.mark.parametrize("left", [0, 1, 100, 2000])
def test_a_truncated_file_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "1epoch.pth"
    torch.save({"w": torch.ones(500)}, path)
    os.truncate(path, left)
    with pytest.raises(UserError, match=r"1epoch\.pth: .*(damaged|not a readable checkpoint)"):
        check_checkpoint(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "latest.pth").symlink_to("9epoch.pth")
    with pytest.raises(UserError, match=r"latest\.pth: no such checkpoint \(a link to 9epoch\.pth\)"):
        check_checkpoint(tmp_path / "latest.pth")


class _Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def _poisoned(path: Path, legacy: bool) -> Path:
    trace = path.parent / "ran"
    torch.save({"model": {}, "code": _Runs(trace)}, path, _use_new_zipfile_serialization=not legacy)
    return trace


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("read", [read_checkpoint, check_checkpoint])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, unpickler: None, read: Any, legacy: bool) -> None:
    path = tmp_path / "checkpoint.pth"
    trace = _poisoned(path, legacy)
    with pytest.raises(UserError, match=r"checkpoint\.pth: holds posix\.mkdir, which is no tensor"):
        read(path)
    with guarded_checkpoints(), pytest.raises(UserError, match="could run code"):
        torch.load(path, weights_only=False)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # what ESPnet does
    assert trace.exists()


def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path: Path, unpickler: None) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"model\.pth: "):
        read_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "ran").exists()


class _Breaks:
    """Something that cannot be pickled to its end."""

    def __reduce__(self) -> str:
        raise OSError("cannot")


def test_failed_checkpoint_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    plain_save, plain_load = torch.save, torch.load
    with guarded_checkpoints():
        torch.save({"epoch": 1}, path)
        with pytest.raises(OSError, match="cannot"):
            torch.save({"weights": torch.zeros(10**5), "broken": _Breaks()}, path)
        assert torch.load(path) == {"epoch": 1}
        with path.with_name("open.pth").open("wb") as handle:
            torch.save([2], handle)  # open files and buffers are written to and read as ever
        with path.with_name("open.pth").open("rb") as handle:
            assert torch.load(handle) == [2]
    assert torch.save is plain_save and torch.load is plain_load
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pth", "open.pth"]


def test_checkpoints_are_plain_again_after_an_error() -> None:
    plain_save = torch.save
    with pytest.raises(KeyError), guarded_checkpoints():
        raise KeyError
    assert torch.save is plain_save
