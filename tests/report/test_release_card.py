"""The README of a release tells what was measured of the exported files, and leaves the rest blank."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.deploy.release import exports_of
from espnet_todm.errors import UserError
from espnet_todm.report.release_card import release_card
from espnet_todm.scoring.scores import score_tables, write_score
from espnet_todm.util.files import hash_file, write_json
from tests.cards import write_card
from tests.deploy.toy_onnx import write_toy_ctc

COST = {"params": 2_500_000, "share_of_params": 0.5, "flops_per_second": 3e8, "share_of_flops": 0.25}
ROW = {"size": "small", "runtime": "sherpa-onnx", "precision": "int8", "threads": 2, "rtf": 0.0125, "file_mib": 1.25}

pytest.importorskip("onnxruntime")


@pytest.fixture
def size(tmp_path: Path) -> Path:
    """An exported size of an experiment."""
    folder = tmp_path / "exp/subnets/small"
    folder.mkdir(parents=True)
    write_card(folder, "small", cost=COST, vocabulary={"size": 10}, espnet_todm="1.0")
    (folder / "config.yaml").write_text("encoder: todm_conformer\n")
    digest = hash_file(folder / "card.json")
    write_toy_ctc(
        folder / "onnx", change=lambda model: model.metadata_props.add(key="todm_card_sha256", value=digest) and None
    )
    (folder / "onnx/card.json").write_bytes((folder / "card.json").read_bytes())
    return folder


def test_what_was_not_measured_is_blank(size: Path) -> None:
    text = release_card(exports_of(size))
    assert text.startswith("# small\n\nA CTC speech recogniser with 10 tokens (`encoder: todm_conformer`), taken out")
    assert "|parameters|2.500 M (50.0% of the supernet's)|" in text and "|WER [95% interval]||" in text
    assert "python onnx/recognize.py speech.wav" in text and "The programs use the fp32 files." in text
    assert "### `onnx` against PyTorch\n\nNot compared: " in text and "### Speed" not in text
    assert "- `onnx/`: takes whole utterances; fp32: `model.onnx`\n" in text and "LICENSE" not in text


def test_what_was_measured_is_told(size: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exp/decode/test/small"
    folder.mkdir(parents=True)
    write_score(folder / "score.json", score_tables({"a": "one two"}, {"a": "one too"}, "test", "small"))
    rows = [ROW, {**ROW, "size": "full", "precision": "fp32"}]
    write_json(tmp_path / "exp/model_latency.json", {"machine": {"cpu": "Cortex-A53"}, "results": rows})
    rates = [{"of": "PyTorch", "wer": 16.7, "changed": 0}, {"of": "sherpa-onnx int8", "wer": 16.98, "changed": 3}]
    parity = {"utterances": 20, "words": 321, "versions": {"sherpa-onnx": "1.2.3"}, "rates": rates}
    write_json(size / "onnx/parity.json", parity)
    text = release_card(exports_of(size), "the mini corpus", tmp_path / "mine.txt")
    assert "|WER test [95% interval]|50.0 [" in text and "Scored on: the mini corpus." in text
    head = "|size|runtime|precision|threads|RTF|times faster than real time|file (MiB)|\n"
    assert f"### Speed\n\nMeasured by the runtimes that devices use: Cortex-A53.\n\n{head}" in text
    assert "|small|sherpa-onnx|int8|2|0.0125|80|1.25|\n" in text and "|full|" not in text
    chunks = {"graphs": "streaming-onnx", "machine": {"cpu": "A53"}, "results": [{**ROW, "end_p50_ms": 700.4}]}
    write_json(tmp_path / "exp/model_latency_streaming.json", chunks)
    text = release_card(exports_of(size))
    assert text.count("### Speed") == 2 and "use (streaming-onnx): A53." in text and "|end p50 (ms)|" in text
    text = release_card(exports_of(size), "the mini corpus", tmp_path / "mine.txt")
    assert "20 utterances, 321 words; sherpa-onnx 1.2.3." in text and "|sherpa-onnx int8|16.98|3|" in text
    assert "- `LICENSE`: the licence" in text and "## Licence\n\nSee `LICENSE`." in text


@pytest.mark.parametrize("name", ["exp/model_latency.json", "exp/subnets/small/onnx/parity.json"])
def test_a_damaged_measurement_is_one_line(size: Path, tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"results": 7})
    with pytest.raises(UserError, match=rf"{name}: no file of ") as error:
        release_card(exports_of(size))
    assert "\n" not in str(error.value)
