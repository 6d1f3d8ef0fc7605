"""The words that models write where nobody speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espnet_todm.bench.nonspeech import SECONDS, sounds, words_per_minute
from espnet_todm.bin.bench import main
from espnet_todm.data.nonspeech import KINDS
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.runtime.base import Runtime
from espnet_todm.errors import UserError
from espnet_todm.report.measured import NONSPEECH_COLUMNS, measured_sections
from espnet_todm.util.files import read_json
from tests.tiny_experiment import write_experiment


class Loud(Runtime):
    """Writes two words for what is not silent."""

    def transcribe(self, samples: np.ndarray) -> str:
        return "ADD E" if np.abs(samples).max() > 1e-3 else ""


def test_words_are_counted_per_minute_of_each_kind() -> None:
    made = sounds(3.0)
    assert set(made) == set(KINDS) and {len(pieces) for pieces in made.values()} == {3}
    rates = words_per_minute(Loud(), made)
    assert rates["silence"] == 0 and rates["tones"] > 0
    assert rates["all"] == pytest.approx(sum(rates[kind] for kind in KINDS) / len(KINDS))
    assert max(rates.values()) <= 2 * 60 / SECONDS
    with pytest.raises(UserError, match="minutes: 0"):
        sounds(0)


def test_columns_are_the_kinds() -> None:
    assert [column.key for column in NONSPEECH_COLUMNS[4:]] == list(KINDS)


def test_the_command_measures_all_sizes_and_the_report_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    root = write_experiment(tmp_path, features=80, conv_norm="layer_norm")
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    for size in ("full", "small"):
        extract(supernet, supernet.encoder.find_subnet(size), root / "subnets" / size)
        export(root / "subnets" / size, options=ExportOptions(precisions=()))
    main(["nonspeech", "--experiment", str(root), "--minutes", "0.5", "--precisions", "fp32"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("|size|runtime|precision|words per minute|in silence|") and len(printed) >= 6
    stored = read_json(root / "nonspeech.json")
    by_size = {(row["size"], row["runtime"]): row["all"] for row in stored["results"]}
    assert by_size["full", "torch"] == by_size["full", "onnxruntime"]
    (section,) = measured_sections(root, tmp_path)
    assert section.title == "Where nobody speaks" and len(section.tables[0].table.rows) == 4
    with pytest.raises(UserError, match="no subnets"):
        main(["nonspeech", "--experiment", str(tmp_path / "subnets"), "--minutes", "1"])
