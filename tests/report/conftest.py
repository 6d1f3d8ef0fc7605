"""A tiny scored experiment: two sets, three sizes, of which one was never costed."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.scoring.scores import score_experiment
from espnet_todm.util.files import write_json, write_table, write_text

REFERENCES = {
    "dev": {"a": "turn on the light", "b": "play some music"},
    "test_clean": {"c": "what is the time", "d": "stop", "e": "set an alarm"},
}
HYPOTHESES = {
    "full": {
        "dev": {"a": "turn on the light", "b": "play sum music"},
        "test_clean": {"c": "what is the time", "d": "stop", "e": "set an alarm"},
    },
    "small": {
        "dev": {"a": "turn the light", "b": "play sum music"},
        "test_clean": {"c": "what was the time now", "d": "stop", "e": ""},
    },
    "uncosted": {"dev": {"a": "turn the light off", "b": "lay sum"}},
}
COSTS = {
    "full": {"params": 4_000_000, "flops_per_second": 2.0e8, "share_of_params": 1.0},
    "small": {"params": 1_250_000, "flops_per_second": 0.5e8, "share_of_params": 0.3125},
}


@pytest.fixture
def unscored(tmp_path: Path) -> Path:
    """A folder with data/ and exp/toy/, decoded but not scored. Returns it."""
    for split, table in REFERENCES.items():
        write_table(tmp_path / "data" / split / "text", table)
    experiment = tmp_path / "exp" / "toy"
    for size, by_split in HYPOTHESES.items():
        for split, table in by_split.items():
            write_table(experiment / "decode" / split / size / "text", table)
    for size, cost in COSTS.items():
        card = {"format": "espnet_todm.card/1", "name": size, "cost": cost}
        write_json(experiment / "subnets" / size / "card.json", card)
    write_json(
        experiment / "subnets" / "small" / "rtf.json",
        {"rtf_median": 0.0123, "rtf_p95": 0.02, "threads": 1, "cpu": "Toy CPU", "utterances": 7},
    )
    write_text(experiment / "config.yaml", "encoder: todm_conformer\n")
    return tmp_path


@pytest.fixture
def scored(unscored: Path) -> Path:
    """The same with every score.json. Returns the experiment's folder."""
    for split in REFERENCES:
        score_experiment(unscored / "exp" / "toy", unscored / "data", [split])
    return unscored / "exp" / "toy"
