"""The tables of methods x sizes and of differences to twins, from files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.report.comparison.results import Results
from espnet_todm.report.comparison.table import gap_section, gap_table, size_table
from espnet_todm.report.comparison.trained import from_experiment
from espnet_todm.util.files import read_json, write_json
from tests.report.comparison.conftest import a_method, write_rates, write_training

TWINS = {"full": "alone full", "small": "alone small"}


def test_rows_hold_what_was_measured_and_blanks_elsewhere(scored: Path) -> None:
    write_training(scored)
    card = scored / "subnets" / "small" / "card.json"
    content = read_json(card)
    content["cost"]["encoder_shares"] = {"params": 0.305, "flops": 0.4}
    write_json(card, content)
    ours = a_method("ours", sizes=("full", "small", "uncosted"), conf={"sizes": {"small": 0.31}})
    results = Results([ours, a_method("theirs")], [from_experiment(ours, scored)])
    header, _, full, theirs, small, _, uncosted = size_table(results).markdown().splitlines()
    assert header.startswith("|size|method|seeds|WER dev [95%]|WER test_clean [95%]|params (M)|")
    assert header.endswith("|updates|of this size|model-steps|training hours|")
    assert full.startswith("|full|ours|1|") and full.endswith("|4.000|0.200||1042|1042|1563|1.12|")
    assert small.startswith("|small|ours|1|") and small.endswith("|1.250|0.050|-0.50|1042|521 + 20 gated|1563|1.12|")
    assert uncosted.endswith("|||||1042|0|1563|1.12|")
    assert theirs == "|full|theirs|0 of 1||||||||||"


def test_model_steps_are_on_the_batches_of_the_base(scored: Path) -> None:
    write_training(scored)
    ours = replace(a_method("ours"), speech=3.0)
    assert {row[-2] for row in size_table(Results([ours], [from_experiment(ours, scored)])).rows} == {str(3 * 1563)}


def pair(folder: Path, seeds: tuple[int, ...], rates: dict[str, float], alone: dict[str, float]) -> Results:
    done = []
    for seed in seeds:
        ours = a_method("ours", seed, twins=TWINS)
        there = write_rates(folder / ours.slug, {size: rate + seed for size, rate in rates.items()})
        done.append(from_experiment(ours, there))
        for size, rate in alone.items():
            twin = a_method(f"alone {size}", seed, sizes=(size,))
            done.append(from_experiment(twin, write_rates(folder / twin.slug, {size: rate + seed})))
    return Results([one.method for one in done], done)


def test_differences_to_twins_are_averaged_over_seeds_and_judged(tmp_path: Path) -> None:
    results = pair(tmp_path, (1, 2, 3), {"full": 18, "small": 30}, {"full": 28, "small": 20})
    rows = {cells[0]: cells for cells in gap_table(results).rows}
    assert rows["full"][:8] == ["full", "ours", "alone full", "+0.0, +0.0", "test", "3", "20.0", "30.0"]
    full, small = rows["full"][8:], rows["small"][8:]
    assert full[0].startswith("-10.0 [-1") and full[1].startswith("-33.3 [") and full[2] == "better"
    assert small[0].startswith("+10.0 [") and small[2] == "worse"
    mean = rows["mean of sizes"][2:]
    assert mean[:6] == ["alone full, alone small", "", "test", "3", "26.0", "26.0"]
    assert mean[8].startswith("equal within ±")
    text = gap_section(results)
    assert "over seeds and utterances together" in text and "One seed" not in text and "one seed" not in text
    assert "2, 3 and 5 seeds held the true difference" in text
    assert [cells[2] for cells in size_table(results).rows] == ["3"] * 4
    assert size_table(results).rows[0][3].startswith("20.0 [")


def test_one_seed_is_said_and_seeds_without_a_twin_are_left_out(tmp_path: Path) -> None:
    results = pair(tmp_path, (1,), {"full": 20, "small": 20}, {"full": 20})
    ((size, *cells),) = gap_table(results).rows
    assert size == "full" and cells[-1].startswith("equal within ±0.0")
    assert "one seed do not cover seeds" in gap_section(results) and "Few seeds" not in gap_section(results)
    alone = a_method("ours")
    assert gap_section(Results([alone], [from_experiment(alone, write_rates(tmp_path / "ours", {"full": 20}))])) == ""


def test_scores_of_other_utterances_are_refused(tmp_path: Path) -> None:
    ours, twin = a_method("ours", twins=TWINS), a_method("alone full", sizes=("full",))
    done = [
        from_experiment(ours, write_rates(tmp_path / "a", {"full": 20})),
        from_experiment(twin, write_rates(tmp_path / "b", {"full": 20}, utterances=30)),
    ]
    with pytest.raises(UserError, match=r"alone full: test/full was scored on other utterances; score all on the same"):
        gap_table(Results([ours, twin], done))


def test_a_twin_of_other_cost_is_refused(tmp_path: Path) -> None:
    ours = a_method("ours", twins={"small": "alone small"})
    twin = a_method("alone small", sizes=("small",), learned_by="ours")
    folders = [write_rates(tmp_path / method.slug, {"small": 20}) for method in (ours, twin)]
    done = [from_experiment(*one) for one in zip((ours, twin), folders)]
    Results([ours, twin], done).check_twins()
    card = folders[1] / "subnets" / "small" / "card.json"
    write_json(card, {**read_json(card), "cost": {"params": 1.3e6}})
    done = [from_experiment(*one) for one in zip((ours, twin), folders)]
    assert gap_table(Results([ours, twin], done)).rows[0][3] == "-3.8"
    with pytest.raises(UserError, match=r"alone small 1 None: has 1\.3e\+06 parameters, but small of ours 1 None has"):
        Results([ours, twin], done).check_twins()
