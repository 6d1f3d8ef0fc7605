"""Lines, tables and JSON: what editors, systems and other programs leave in files, and what never gets into ours."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from espnet2.fileio.read_text import read_2columns_text
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.errors import UserError
from espnet_todm.files import read_json, read_lines, read_table, write_json, write_table, write_text

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
        (gzip.compress(bytes(range(97, 123)))[:-9], "text: cannot be read"),
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
