"""The page of an experiment: whole, true, safe and by itself."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from espnet_todm.encoders.latency import FORMAT as COMPONENTS
from espnet_todm.errors import UserError
from espnet_todm.report.experiment import load_experiment
from espnet_todm.report.page import PAGE, write_page
from espnet_todm.scoring.scores import rate_cell
from espnet_todm.util.files import write_json, write_text
from tests.cards import write_card
from tests.report.test_results import ENVIRONMENT
from tests.report.test_selection import ENCODER, TABLE, half

VOID = {"meta", "link", "br"}


class Reader(HTMLParser):
    """Checks that every element is closed where it must be; keeps attributes, the words, and the cells of tables."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Optional[str]]]] = []
        self.words = ""
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, Optional[str]]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def page_of(folder: Path, label: str = "made up") -> Reader:
    return read(write_page(load_experiment(folder), label, ENVIRONMENT))


@pytest.fixture
def complete(scored: Path) -> Path:
    """The tiny experiment with everything that a page can show but components and curves."""
    for size in ("full", "small"):
        folder = scored / "subnets" / size
        (folder / "model.safetensors").write_bytes(bytes(2_000_000 if size == "full" else 500_000))
        (folder / "onnx").mkdir()
        for name in ("encoder.int8.onnx", "decoder.int8.onnx", "joiner.int8.onnx"):
            (folder / "onnx" / name).write_bytes(bytes(1000))
        step = {"name": "encoder", "of": "onnxruntime", "against": "PyTorch", "difference": None, "limit": 1e-3}
        rates = [{"of": "sherpa-onnx fp32", "wer": 12.5, "changed": 0}]
        report = {"model": f"exp/toy/subnets/{size}", "utterances": 3, "holds": size == "full", "rates": rates}
        write_json(folder / "onnx" / "parity.json", {**report, "steps": [{**step, "holds": size == "full"}]})
    figures = {"size": "small", "runtime": "onnxruntime", "precision": "int8", "threads": 1, "rtf": 0.00321}
    times = {"latency_p50_ms": 12.34, "speedup_interval": [1, 2]}
    write_json(scored / "model_latency.json", {"machine": {"cpu": "Toy CPU"}, "results": [{**figures, **times}]})
    rows = [
        {"name": f"s{i}", "proposed_by": "random", "scores": {"wer": 9.0 - i}, "costs": {"params": 1e6 * i}, "kept": {}}
        for i in range(1, 4)
    ]
    found = {"objectives": ["wer", "params"], "pareto": ["s1", "s3"], "methods": {"NSGA-II": rows, "random": rows[:1]}}
    write_json(scored / "search" / "search.json", {**found, "hypervolume": {"NSGA-II": 0.75, "random": 0.5}})
    write_json(scored / "cost.json", {"factor": 1.56})
    return scored


def test_nothing_is_asked_of_another_place(complete: Path) -> None:
    page = page_of(complete)
    text = (complete / PAGE).read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\((?!#)|<script|<iframe|<object|<embed|<base|srcset", text)
    for tag, attributes in page.elements:
        assert not {"src", "xlink:href", "xmlns"} & attributes.keys()
        target = attributes.get("href") or ""
        assert tag in ("a", "use", "link") or not target
        if tag == "a" and not target.startswith("#"):
            assert (complete / target).exists()
        if tag == "link":
            assert target == "data:,"


def test_every_size_and_number_is_that_of_the_scores(complete: Path) -> None:
    experiment, page = load_experiment(complete), page_of(complete)
    sizes = page.rows[1 : 1 + len(experiment.sizes)]
    assert [row[0] for row in sizes] == [size.name for size in experiment.sizes] == ["full", "small", "uncosted"]
    columns = page.rows[0]
    for row, size in zip(sizes, experiment.sizes):
        cells = dict(zip(columns, (cell.strip() for cell in row)))
        for split in experiment.splits:
            assert cells[f"WER {split} [95%]"] == rate_cell(size.scores.get(split))
        assert cells["params (M)"] == ("" if size.params is None else f"{size.params / 1e6:.3f}")
    assert "model.safetensors0.5 MB" in sizes[1][-2] and "0.003 MB" in sizes[1][-1]
    names = [name for row in page.rows for name in row[:1]]
    assert {f"{score.split}/{score.size}" for score in experiment.scores()} <= set(names)


def test_pictures_and_tables_speak_to_those_who_do_not_see(complete: Path) -> None:
    page = page_of(complete)
    assert len(page.named("svg")) == 4  # params, FLOPs, file and, of the search, params; RTF is known of one size alone
    for svg in page.named("svg"):
        assert svg["role"] == "img" and svg["aria-label"]
    assert all(table["aria-label"] for table in page.named("table"))
    assert all(cell["scope"] in ("row", "col") for cell in page.named("th"))
    assert len(page.named("figcaption")) == len(page.named("figure")) == len(page.named("svg"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    anchors = [a["href"][1:] for a in page.named("a") if (a["href"] or "").startswith("#")]
    assert set(anchors) <= set(identifiers) and {"latency", "parity", "search", "sizes"} <= set(anchors)


def test_what_was_measured_is_shown(complete: Path) -> None:
    rows = page_of(complete).rows
    assert ["size", "runtime", "precision", "threads", "RTF", "times faster than real time", "p50 (ms)"] in rows
    assert ["small", "onnxruntime", "int8", "1", "0.0032", "312", "12.3"] in rows
    assert ["small", "sherpa-onnx fp32", "12.50", "0"] in rows
    assert ["encoder", "onnxruntime", "PyTorch", "0.001", "no"] in rows
    assert ["s1", "random", "8.00", "1.000"] in rows and ["s3", "random", "6.00", "3.000"] in rows
    assert not any(row[0] == "s2" for row in rows)


def test_what_was_not_measured_is_left_out(scored: Path) -> None:
    page = page_of(scored)
    identifiers = {attributes.get("id") for _, attributes in page.elements}
    assert not {"latency", "parity", "search", "components", "training"} & identifiers
    assert {"sizes", "costs", "errors", "environment"} <= identifiers
    for card in scored.glob("subnets/*/card.json"):
        card.unlink()
    assert page_of(scored).named("svg") == []


def test_components_kept_are_shown_block_by_block(scored: Path) -> None:
    write_text(scored / "config.yaml", yaml.safe_dump({"encoder": "todm_conformer", "encoder_conf": ENCODER}))
    write_card(scored / "subnets" / "small", "small", cost={"params": 1}, kept=half().to_json())
    (scored / "subnets" / "full" / "card.json").unlink()
    weights = {"small": [0.5] * len(TABLE.components)}
    write_text(scored / "selection.jsonl", "".join(json.dumps({"step": i, "weights": weights}) + "\n" for i in (0, 9)))
    page = page_of(scored)
    start = page.rows.index(["block", "FFN 1", "attention", "convolution", "FFN 2"])
    blocks = [["3", "0", "0", "0", "0"], ["2", "0", "50", "100", "0"], ["1", "100", "100", "100", "100"]]
    assert page.rows[start + 1 : start + 4] == blocks
    shares = [float((cell.get("style") or "0").rpartition(" ")[2]) for cell in page.named("td") if "style" in cell]
    assert [f"{100 * share:.0f}" for share in shares] == [share for row in blocks for share in row[1:]]
    assert "It drops block 3 whole." in page.words and "soft weight that small gives" in page.words


def test_gradient_agreement_is_a_table_and_a_curve(scored: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(scored / "tensorboard" / "train")) as writer:
        for step, value in ((5, 0.75), (10, 0.5)):
            for part in ("all", "self_attn"):
                writer.add_scalar(f"agreement_{part}_small", value, step)
    page = page_of(scored)
    start = page.rows.index(["part", *(f"small: {name}" for name in ("first quarter", "last quarter", "below 0 (%)"))])
    assert page.rows[start + 1 : start + 3] == [["all", "", "0.50", "0"], ["attention", "", "0.50", "0"]]
    assert "Gradient agreement (all)" in page.words and "Gradient agreement (self_attn)" not in page.words


HOSTILE = "<script>alert(1)<|script> & $\\frac{$ \"' --> {{ 7*7 }}"


def test_hostile_names_stay_text(unscored: Path) -> None:
    from espnet_todm.scoring.scores import score_experiment

    toy = unscored / "exp" / "toy"
    (toy / "decode" / "dev" / "small").rename(toy / "decode" / "dev" / HOSTILE)
    (toy / "subnets" / "small").rename(toy / "subnets" / HOSTILE)
    (toy / "subnets" / HOSTILE / "model.safetensors").write_bytes(b"0")
    score_experiment(toy, unscored / "data", ["dev"])
    page = page_of(toy, label=f"</p><img src=x onerror=alert(1)> {HOSTILE}")
    assert not page.named("script") and not page.named("img")
    assert HOSTILE in page.words and any(row[0] == HOSTILE for row in page.rows)
    links = [a["href"] for a in page.named("a") if "subnets/" in (a["href"] or "")]
    assert len(links) == 1 and re.fullmatch(r"subnets/[\w%.$'()*~-]+/model\.safetensors", links[0] or "")


@pytest.mark.parametrize("content", [[1], {"results": 5}, {"results": [5]}, {}])
def test_a_file_of_another_kind_is_named(scored: Path, content: Any) -> None:
    write_json(scored / "latency.json", content)
    with pytest.raises(UserError, match=r"latency\.json: "):
        page_of(scored)
    assert not (scored / PAGE).exists()


def test_a_table_of_components_latencies_is_no_measurement_of_models(scored: Path) -> None:
    write_json(scored / "latency.json", {"format": COMPONENTS, "modules": {}})
    assert "latency" not in {attributes.get("id") for _, attributes in page_of(scored).elements}


def test_without_jinja2_one_line_says_so(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install jinja2"):
        page_of(scored)
