"""Golden tables of the tiny experiment."""

from __future__ import annotations

from pathlib import Path

from espnet_todm.report.experiment import load_experiment
from espnet_todm.report.tables import difference_table, error_table, size_table


def test_error_table_is_sclites(scored: Path) -> None:
    assert error_table(load_experiment(scored).scores()).markdown() == (
        "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "|dev/full|2|7|85.7|14.3|0.0|0.0|14.3|50.0|\n"
        "|dev/small|2|7|71.4|14.3|14.3|0.0|28.6|100.0|\n"
        "|dev/uncosted|2|7|42.9|28.6|28.6|14.3|71.4|100.0|\n"
        "|test_clean/full|3|8|100.0|0.0|0.0|0.0|0.0|0.0|\n"
        "|test_clean/small|3|8|50.0|12.5|37.5|12.5|62.5|66.7|\n"
    )


def test_size_table_leaves_blank_what_was_not_measured(scored: Path) -> None:
    header, _, full, small, uncosted = size_table(load_experiment(scored)).markdown().splitlines()
    assert header == (
        "|size|params (M)|of full (%)|GFLOPs per s of speech|RTF median|RTF p95|times faster than real time"
        "|WER dev [95%]|WER test_clean [95%]|"
    )
    assert full == "|full|4.000|100.0|0.200||||14.3 [0.0, 33.3]|0.0 [0.0, 0.0]|"
    assert small == "|small|1.250|31.2|0.050|0.0123|0.0200|81|28.6 [25.0, 33.3]|62.5 [0.0, 100.0]|"
    assert uncosted.startswith("|uncosted|||||||71.4 [") and uncosted.endswith("]||")


def test_differences_are_against_the_largest(scored: Path) -> None:
    rows = difference_table(load_experiment(scored)).markdown().splitlines()[2:]
    assert [row.split("|")[1:5] for row in rows] == [
        ["dev", "small", "full", "+14.29"],
        ["dev", "uncosted", "full", "+57.14"],
        ["test_clean", "small", "full", "+62.50"],
    ]


def test_one_size_has_nothing_to_differ_from(scored: Path) -> None:
    for path in [*scored.glob("decode/*/small/score.json"), *scored.glob("decode/*/uncosted/score.json")]:
        path.unlink()
    assert difference_table(load_experiment(scored)).rows == []
