"""Lines, tables and JSON: what editors, systems and other programs leave in files, and what never gets into ours. Files are
whole or absent, also on a full disk."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from espnet2.fileio.read_text import read_2columns_text
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.errors import UserError, damage_told
from espnet_todm.espnet.checkpoint_files import guarded_checkpoints, save_checkpoint
from espnet_todm.util.files import (
    atomic_directory,
    atomic_path,
    json_rows,
    read_json,
    read_lines,
    read_table,
    write_json,
    write_table,
    write_text,
)

NO_ENDS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"  # what str.splitlines takes for the end of a line


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "text"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("space", [b" ", b"\t", b"  \t ", "\u3000".encode()])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_table_is_read_whoever_wrote_it(tmp_path: Path, end: bytes, mark: bytes, space: bytes, zipped: bool) -> None:
    rows = [b"u1" + space + "één twee".encode() + b" ", b"", b"u2" + space, b"u3", b"u4" + space + b"x"]
    content = mark + end.join(rows)
    path = written(tmp_path, gzip.compress(content) if zipped else content)
    assert read_table(path) == {"u1": "één twee", "u2": "", "u3": "", "u4": "x"}


def test_joined_files_keep_no_byte_order_mark(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "\ufeffu1 a\n\ufeffu2 b\n".encode())) == {"u1": "a", "u2": "b"}


@pytest.mark.parametrize("character", NO_ENDS)
def test_only_line_feeds_end_a_line(tmp_path: Path, character: str) -> None:
    path = written(tmp_path, f"u1 one{character}two\nu2 three\n".encode())
    assert list(read_lines(path)) == [f"u1 one{character}two", "u2 three"]
    assert read_table(path) == {"u1": f"one{character}two", "u2": "three"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u1 a\nu2 café\n".encode("latin-1"), r"text:2: not UTF-8 text \(byte 0xe9 at place 7\); .*iconv -f ENCODING"),
        ("u1 a\n".encode("utf-16"), "text:1: UTF-16, .* iconv -f UTF-16"),
        ("u1 a\n".encode("utf-16-le"), "text:1: UTF-16"),
        ("u1 a\n".encode("utf-16-be"), "text:1: UTF-16"),
        (b"u1 a\ru2 b\r", "text:1: the lines end in carriage returns alone"),
        (gzip.compress(bytes(range(97, 123)), mtime=0)[:-9], "text: cannot be read"),
        (b"u1 a\nu2 b\nu1 c\n", "text:3: key 'u1' stands twice"),
    ],
)
def test_what_is_no_table_is_said_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_table(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file"):
        read_table(tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot be read .*directory"):
        list(read_lines(tmp_path))


def test_an_empty_file_is_an_empty_table(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, b"")) == read_table(written(tmp_path, b"\n \n")) == {}


KEYS = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=6).filter(
    lambda key: key.split() == [key]
)
VALUES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=12).map(str.strip)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_written_is_read_back_and_by_espnet(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "table"
    write_table(path, table)
    assert read_table(path) == read_2columns_text(path) == dict(sorted(table.items()))


@pytest.mark.parametrize("table", [{"a b": "x"}, {"a\u3000b": "x"}, {"": "x"}, {"a": "x\ny"}, {"a": "x\ry"}])
def test_rows_that_would_be_read_as_others_are_refused(tmp_path: Path, table: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"table: .*cannot"):
        write_table(tmp_path / "table", table)
    assert not list(tmp_path.iterdir())


def test_a_file_name_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scp: 'u1 caf\\udce9.wav' cannot be written as UTF-8"):
        write_text(tmp_path / "scp", f"u0 a.wav\nu1 {os.fsdecode(b'caf' + bytes([0xE9]))}.wav\n")
    assert not list(tmp_path.iterdir())


def test_json_holds_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", {"é": [1.5, float("nan"), (float("inf"), "NaN")], "x": {"y": -float("inf"), "z": None}}
    )
    content = (tmp_path / "a.json").read_text(encoding="utf-8")
    found = json.loads(content, parse_constant=lambda name: pytest.fail(name))
    assert found == read_json(tmp_path / "a.json") == {"é": [1.5, None, [None, "NaN"]], "x": {"y": None, "z": None}}
    (tmp_path / "a.json").write_text(content, encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == found


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


@given(
    st.recursive(
        st.integers() | st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_rows_of_json_say_the_same(value: object) -> None:
    for depth in range(4):
        assert json.loads(json_rows(value, depth)) == value


def test_rows_of_json_are_lines_below_the_outer_levels() -> None:
    text = json_rows({"a": {"x": [1, {"b": 2}], "y": []}, "c": 3.5}, depth=2)
    assert text == '{\n  "a": {\n    "x": [1, {"b": 2}],\n    "y": []\n  },\n  "c": 3.5\n}'
