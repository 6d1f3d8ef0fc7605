"""Tables as streams: the same files as from dictionaries, and every way in which rows can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.data.sorted_tables import Lookup, open_table, sorted_table, write_tables
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_table


def test_tables_of_one_stream_and_the_speakers(tmp_path: Path) -> None:
    rows = [("u1", "one two", "b", "left out"), ("u2", "", "a", "left out"), ("u3", "three", "b", "left out")]
    write_tables(tmp_path, ["text", "utt2spk"], rows)
    assert (tmp_path / "text").read_bytes() == b"u1 one two\nu2\nu3 three\n"
    assert read_table(tmp_path / "utt2spk") == {"u1": "b", "u2": "a", "u3": "b"}
    assert (tmp_path / "spk2utt").read_bytes() == b"a u2\nb u1 u3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spk2utt", "text", "utt2spk"]


def test_tables_without_speakers(tmp_path: Path) -> None:
    write_tables(tmp_path, ["text"], [("u", "word")])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u", "a"), ("u", "b")], r"text: key 'u' stands twice, but keys must be unique"),
        ([("u v", "a")], r"text: 'u v' cannot be the key of a row"),
        ([("u", "a\nb")], r"text: u: 'a\\nb' cannot stand in a row"),
        ([("u", "caf\udce9")], r"text: 'u caf\\udce9' cannot be written as UTF-8"),
    ],
)
def test_rows_that_cannot_be_read_back_leave_no_table(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message), open_table(tmp_path / "text") as write:
        for row in rows:
            write(*row)
    assert not list(tmp_path.iterdir())


def test_a_table_in_another_order_is_sorted(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content in ("a 1\nb 2\n\nc\n", "c\nb 2\na 1\n"):
        path.write_text(content)
        assert list(sorted_table(path)) == [("a", "1"), ("b", "2"), ("c", "")]
    path.write_text("a 1\na 2\n")
    with pytest.raises(UserError, match="text:2: key 'a' stands twice"):
        sorted_table(path)


def test_lookups_go_forward(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a 1\nb 2\nd 4\n")
    table = Lookup(tmp_path / "text")
    assert table["b"] == "2"
    with pytest.raises(UserError, match="text: no row for c"):
        table["c"]
    with pytest.raises(UserError, match="text: no row for z"):
        table["z"]
