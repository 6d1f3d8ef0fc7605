"""Markers, locks and what a killed run leaves."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.util.stage_marker import MARKER, atomic_stage, exclusive, fingerprint, is_complete


def make(folder: Path, options: dict, content: str) -> bool:
    """Whether the stage had anything to do."""
    with atomic_stage(folder, options) as temporary:
        if temporary is None:
            return False
        (temporary / "out").write_text(content)
    return True


def test_same_options_skip_and_others_redo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    caplog.set_level("INFO")
    assert make(folder, {"a": 1, "list": [1, 2]}, "first")
    assert not make(folder, {"a": 1, "list": [1, 2]}, "second")
    assert "complete already with the same options, skipped" in caplog.text
    assert (folder / "out").read_text() == "first"
    assert make(folder, {"a": 2, "list": [1, 2]}, "third")
    assert (folder / "out").read_text() == "third"


def test_an_error_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "out", {"a": 1}, "first")
    with pytest.raises(RuntimeError), atomic_stage(tmp_path / "out", {"a": 2}) as temporary:
        (temporary / "out").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "out").read_text() == "first"
    assert is_complete(tmp_path / "out", {"a": 1})
    assert not list(tmp_path.glob(".*.part"))


def test_a_killed_stage_is_repaired(tmp_path: Path) -> None:
    code = (
        "import os, sys; from espnet_todm.util.stage_marker import atomic_stage\n"
        "with atomic_stage(sys.argv[1], {'a': 1}) as folder:\n"
        "    (folder / 'out').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.part"))
    assert make(tmp_path / "out", {"a": 1}, "whole")
    assert (tmp_path / "out" / "out").read_text() == "whole"
    assert not list(tmp_path.glob(".out.*.part"))


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with exclusive(tmp_path / "out"):
        with pytest.raises(UserError, match="another process is writing it"), exclusive(tmp_path / "out"):
            pass
        with exclusive(tmp_path / "other"):
            pass
    with exclusive(tmp_path / "out"):
        pass


def test_the_lock_says_who_holds_it_by_whatever_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk2/out").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk2/out")
    monkeypatch.chdir(tmp_path / "out")
    held = rf"pid {os.getpid()} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with exclusive(tmp_path / "out"):
        for name in (".", tmp_path / "disk2/out", "../out"):
            with pytest.raises(UserError, match=rf"another process is writing it \({held}\); wait"), exclusive(name):
                pass


def test_a_damaged_marker_does_not_count(tmp_path: Path) -> None:
    make(tmp_path / "out", {"a": 1}, "first")
    (tmp_path / "out" / MARKER).write_text("{")
    assert not is_complete(tmp_path / "out", {"a": 1})


def test_fingerprint_follows_the_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage before this one first"):
        fingerprint(tmp_path / "out")
    make(tmp_path / "out", {"a": 1}, "first")
    first = fingerprint(tmp_path / "out")
    make(tmp_path / "out", {"a": 2}, "first")
    assert fingerprint(tmp_path / "out") != first
    make(tmp_path / "out", {"a": 1}, "first")
    assert fingerprint(tmp_path / "out") == first
