"""The report of the tiny experiment, whole and part by part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from espnet_todm.bin import report as command
from espnet_todm.errors import UserError
from espnet_todm.report.advice import advice_lines
from espnet_todm.report.environment import Environment, Sources
from espnet_todm.report.experiment import load_experiment
from espnet_todm.report.results import environment_section, model_section, write_results
from espnet_todm.report.tables import error_table, size_table
from espnet_todm.util.files import write_json

ENVIRONMENT = Environment(
    date="2024-02-29 12:00 UTC",
    python="3.11.7",
    espnet="202511",
    torch="2.11.0",
    espnet_todm="0.1.0",
    cpu="Toy CPU",
    gpu=None,
    sources=Sources("0123abc", "2024-02-28T10:00:00+00:00", dirty=True),
    commands=("./run.sh --stage 1", "./run.sh --stage 12 --sizes small"),
)


def test_environment_section() -> None:
    assert environment_section(ENVIRONMENT) == (
        "## Environments\n"
        "- date: `2024-02-29 12:00 UTC`\n"
        "- python version: `3.11.7`\n"
        "- espnet version: `espnet 202511`\n"
        "- pytorch version: `pytorch 2.11.0`\n"
        "- espnet_todm version: `0.1.0`\n"
        "- CPU: `Toy CPU`\n"
        "- Git hash: `0123abc` with uncommitted changes\n"
        "  - Commit date: `2024-02-28T10:00:00+00:00`\n"
        "- Commands:\n"
        "\n"
        "```sh\n"
        "./run.sh --stage 1\n"
        "./run.sh --stage 12 --sizes small\n"
        "```\n"
    )


def test_model_section(scored: Path) -> None:
    write_json(
        scored / "cost.json",
        {
            "factor": 1.56,
            "bound": 1.52,
            "single_step_seconds": 0.4,
            "peak_memory_mib": {"one model": 705, "supernet": 728},
        },
    )
    experiment = load_experiment(scored)
    text = model_section(experiment, "made up, not the official sets", "conf/train.yaml", ["toy.png"])
    head, rest = text.split("### Sizes\n")
    assert head == (
        "## toy\n"
        "- ASR config: [conf/train.yaml](conf/train.yaml)\n"
        "- Data: made up, not the official sets\n"
        "- #Params: 1.25 M to 4.00 M in 2 sizes\n"
        "- Note: test_clean has 3 sentences and 8 words, the official set of this name 2620 and 52576: "
        "results cannot be compared with published ones\n"
        "\n"
    )
    assert rest.startswith(
        size_table(experiment).markdown()
        + "".join(f"\n{line}\n" for line in advice_lines(experiment))
        + "\nRTF measured with threads: 1, CPU: Toy CPU, utterances: 7.\n"
        + "\n### Training cost\n"
        + "- time of a supernet step against one full model's: 1.56\n"
        + "- the least it can be, with the part that all sizes share computed once: 1.52\n"
        + "- one full model's step: 0.400 s\n"
        + "- peak memory, one model: 705 MiB\n"
        + "- peak memory, supernet: 728 MiB\n"
        + "\n![word error rate against cost](toy.png)\n"
        + "\n### WER\n"
        + error_table(experiment.scores()).markdown()
        + "\n### CER\n"
        + error_table(experiment.scores(), "characters").markdown()
        + "\n### Differences between sizes (paired bootstrap)\n"
    )


def test_what_was_not_measured_has_no_section(scored: Path) -> None:
    (scored / "subnets" / "small" / "rtf.json").unlink()
    text = model_section(load_experiment(scored), "x", None, [])
    assert not re.search("RTF measured|Training cost|ASR config|!\\[", text)


def test_missing_hypotheses_are_told(scored: Path) -> None:
    path = scored / "decode" / "dev" / "small" / "score.json"
    path.write_text(path.read_text().replace('"missing": 0', '"missing": 2'))
    text = model_section(load_experiment(scored), "x", None, [])
    assert "- Note: dev/small: 2 utterances had no hypothesis and count as empty\n" in text


def test_links_lead_from_the_report_to_the_files(scored: Path) -> None:
    output = scored.parent.parent / "docs" / "RESULTS.md"
    text = write_results([scored], output, "made up")
    assert output.read_text() == text and text.startswith("# RESULTS\n\n## Environments\n")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == [
        "../exp/toy/config.yaml",
        "../exp/toy/report/toy_wer_params.png",
        "../exp/toy/report/toy_wer_flops.png",
    ]
    assert all((output.parent / link).is_file() for link in links)


def test_command(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, pictures = tmp_path / "RESULTS.md", tmp_path / "images"
    options = ["--experiment", str(scored), "--label", "made up", "--output", str(output), "--plots", str(pictures)]
    command.main([*options, "--command", "./run.sh", "--command", "./run.sh --stage 15"])
    text = output.read_text()
    assert text in capsys.readouterr().out
    assert "./run.sh\n./run.sh --stage 15\n" in text and "(images/toy_wer_params.png)" in text


def test_nothing_is_written_for_an_unscored_experiment(unscored: Path) -> None:
    output = unscored / "RESULTS.md"
    with pytest.raises(UserError, match="score the experiment first"):
        write_results([unscored / "exp" / "toy"], output, "x")
    assert not output.exists() and not (unscored / "exp" / "toy" / "report").exists()
