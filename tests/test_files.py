"""Files: whole or absent, also on a full disk; what is in the way is named."""

from __future__ import annotations

import errno
import gzip
import os
import tempfile
from pathlib import Path

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.files import atomic_directory, atomic_path, damage_told, write_text
from espnet_todm.trainers.checkpoint_files import guarded_checkpoints, save_checkpoint

FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="no /dev/full")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files lie on a device that has no space: the system itself refuses each write."""

    def mkstemp(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        path = dir / f"{prefix}full{suffix}"
        path.symlink_to(FULL_DISK)
        return os.open(path, os.O_WRONLY), str(path)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


@needs_full_disk
@pytest.mark.parametrize("guarded", [False, True])
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(
    tmp_path: Path, request: pytest.FixtureRequest, guarded: bool
) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"epoch": 1}, path)
    request.getfixturevalue("full_disk")
    line = r"checkpoint\.pth: cannot be written: No space left on device; what stood there before is whole$"
    with pytest.raises(UserError, match=line):
        if guarded:
            with guarded_checkpoints():
                torch.save({"epoch": 2, "w": torch.zeros(10**5)}, path)
        else:
            save_checkpoint({"epoch": 2, "w": torch.zeros(10**5)}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pth"]


@needs_full_disk
def test_text_on_a_full_disk(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(UserError, match=r"card\.json: cannot be written: No space left on device"):
        write_text(tmp_path / "card.json", "x" * 10**5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        OSError(errno.EFBIG, "File too large"),
    ],
)
def test_a_folder_is_left_as_it_was(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small/old").touch()
    with pytest.raises(UserError, match="small: cannot be written: "), atomic_directory(tmp_path / "small") as folder:
        (folder / "new").touch()
        try:
            raise error
        except Exception as first:
            raise ValueError("what a library made of it") from first
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "small"]


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a defect$"), atomic_path(tmp_path / "x"):
        raise ValueError("a defect")


@pytest.mark.parametrize("place", ["out", "out/deep/down"])
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"/out: is a file, but must be a folder; "), atomic_directory(tmp_path / place):
        pass
    (tmp_path / "out").unlink()
    (tmp_path / "out").symlink_to("nowhere")
    line = r"/out: is a link to nowhere, which is not there, but must be a folder; "
    with pytest.raises(UserError, match=line), atomic_directory(tmp_path / place):
        pass
    with pytest.raises(UserError, match=line):
        write_text(tmp_path / "out/file", "")


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, but must be a file"):
        write_text(tmp_path, "")


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk2/exp").mkdir(parents=True)
    (tmp_path / "exp").symlink_to("disk2/exp")
    with atomic_directory(tmp_path / "exp") as folder:
        (folder / "new").touch()
    assert (tmp_path / "exp").is_symlink() and (tmp_path / "disk2/exp/new").is_file()


def test_damage_is_told_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    line = r"cuts\.jsonl\.gz: damaged \(EOFError: .*\); run stage 1 again$"
    with pytest.raises(UserError, match=line), damage_told(path, "run stage 1 again"), gzip.open(path) as file:
        file.read()
    with pytest.raises(FileNotFoundError), damage_told(path, ""):
        (tmp_path / "nowhere").read_text()
