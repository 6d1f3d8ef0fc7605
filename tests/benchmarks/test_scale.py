"""The plan for large corpora is what the committed costs give."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.scale import COSTS, page, table


def test_the_page_is_up_to_date() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data" / "scale.md").read_text(encoding="utf-8")
    assert page(text) == text


def test_every_cost_has_a_source_and_every_cell_follows_from_costs() -> None:
    costs = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    assert all(set(cost) == {"value", "source"} and cost["source"] for cost in costs.values())
    ones = dict.fromkeys(costs, 1.0)
    rows = [line.split("|")[1:-1] for line in table(ones, (1000, 2000)).splitlines()]
    assert rows[0][1:] == [" 1,000 h ", " 2,000 h "]
    found = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows[2:]}
    assert found["utterances"] == ["3,600,000", "7,200,000"]
    assert found["stage 2, processor hours"] == ["3", "6"]  # 10.8 million rows of 1 ms
    assert found["training, hours on GPUs"] == ["", ""]
