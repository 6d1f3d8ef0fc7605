"""Problem lists survive writing and reading."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.data.tables import Problem, read_cuts, read_problems, write_problems
from espnet_todm.errors import UserError

NAMES = st.text(st.characters(categories=("Lu", "Ll", "Nd")), min_size=1, max_size=8)


@given(st.dictionaries(NAMES, st.text(max_size=40), max_size=5))
def test_problems_come_back_whatever_their_detail(details: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problems.tsv")
        write_problems(path, [Problem(name, "unreadable", detail) for name, detail in details.items()])
        found = list(read_problems(path))
        assert len(path.read_text().splitlines()) == 1 + len(details)
    assert [one.utterance for one in found] == sorted(details)
    for one in found:
        assert one.detail.split() == details[one.utterance].split()


def test_no_file_means_no_problems(tmp_path: Path) -> None:
    assert not list(read_problems(tmp_path / "problems.tsv"))


def test_missing_cuts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cuts.jsonl.gz: no such file"):
        read_cuts(tmp_path)
