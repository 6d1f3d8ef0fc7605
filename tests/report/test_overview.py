"""The table of several experiments, from what their folders hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from espnet_todm.bin.overview import main

from espnet_todm.errors import UserError
from espnet_todm.report.overview import overview
from espnet_todm.util.files import write_json


def measured(size: str, precision: str, mib: float, seconds: float, **other: object) -> dict[str, object]:
    result = {"size": size, "precision": precision, "file_mib": mib, "cpu_seconds_per_second": seconds}
    return {**result, "runtime": "onnxruntime", "threads": 1, **other}


def test_without_exported_files_it_has_costs_and_error_rates(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(scored), str(scored), "--set", "dev"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "|experiment|size|params (M)|MFLOPs per s of speech|WER dev [95%]|"
    assert rows == [*rows[:3], *rows[:3]] and len(rows) == 6
    assert rows[0].startswith("|toy|full|4.00|200|14.3 [") and rows[2].startswith("|toy|uncosted|||")


def test_files_and_speed_are_those_of_one_thread_in_onnxruntime(scored: Path) -> None:
    results = [
        measured("full", "int8", 2.0, 0.001), measured("full", "fp32", 8.0, 0.002), measured("small", "int8", 1.0, 0.0005),
        measured("full", "fp32", 8.0, 0.009, runtime="sherpa-onnx"), measured("full", "fp32", 8.0, 0.009, threads=2),
    ]  # fmt: skip
    write_json(scored / "model_latency.json", {"results": results})
    table = overview([scored], "test_clean")
    assert table.header[5:] == [
        "fp32 (MiB)", "int8 (MiB)", "fp32 (CPU ms per s of speech)", "int8 (CPU ms per s of speech)",
    ]  # fmt: skip
    assert [row[5:] for row in table.rows] == [["8.0", "2.0", "2.00", "1.00"], ["", "1.0", "", "0.50"], [""] * 4]
    assert table.rows[2][4] == ""  # never scored on that set


def test_wrong_sets_and_files_end_in_one_line(scored: Path) -> None:
    with pytest.raises(UserError, match=r"set: 'tset' was not scored in .*toy; there are: dev, test_clean"):
        overview([scored], "tset")
    write_json(scored / "model_latency.json", {"results": [{"size": "full"}]})
    with pytest.raises(UserError, match=r"latency\.json: no file of bench models"):
        overview([scored], "dev")
