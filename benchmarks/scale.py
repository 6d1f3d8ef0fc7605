"""A plan for corpora of several sizes, from measured and published unit costs.

    python -m benchmarks.scale

The costs and their sources are in unit_costs.yaml. What has neither been measured nor published stays blank.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

import yaml

from espnet_todm.util.files import write_text

COSTS = Path(__file__).parent / "unit_costs.yaml"
HOURS = (100, 960, 30_000, 1_000_000)
COPIES = 3  # of each utterance with speed_factors "0.9 1.1"
BLANK = ""
_GIB = 2.0**30


def table(costs: dict[str, float], hours: tuple[int, ...] = HOURS) -> str:
    """The plan as a Markdown table: a row for each quantity, a column for each number of hours."""
    plan: dict[str, Callable[[float], str]] = _plan(costs)
    lines = [f"| | {' | '.join(f'{n:,} h' for n in hours)} |", "|---" * (1 + len(hours)) + "|"]
    lines += [f"| {name} | {' | '.join(cell(n) for n in hours)} |" for name, cell in plan.items()]
    return "\n".join(lines) + "\n"


def _plan(costs: dict[str, float]) -> dict[str, Callable[[float], str]]:
    def utterances(hours: float) -> float:
        return hours * 3600 / costs["seconds_per_utterance"]

    def rows(hours: float) -> float:
        return COPIES * utterances(hours)

    def busy(cost: str, of: Callable[[float], float]) -> Callable[[float], str]:
        return lambda hours: _number(of(hours) * costs[cost] / 3.6e6)

    def disk(cost: str, times: int = 1) -> Callable[[float], str]:
        return lambda hours: _number(times * hours * costs[cost] / _GIB)

    return {
        "utterances": lambda hours: f"{utterances(hours):,.0f}",
        "rows with speed copies": lambda hours: f"{rows(hours):,.0f}",
        "stage 1, processor hours": busy("stage_1_ms_per_utterance", utterances),
        "stage 2, processor hours": busy("stage_2_ms_per_row", rows),
        "stage 3, processor hours": busy("stage_3_ms_per_row", rows),
        "stage 4, processor hours": busy("stage_4_ms_per_row", rows),
        "stage 4, Shar folder, processor hours": busy("shar_ms_per_row", rows),
        "stage 5, unigram, processor hours": lambda hours: (
            busy("stage_5_ms_per_utterance", utterances)(hours)
            if utterances(hours) <= costs["sentence_limit"]
            else BLANK
        ),
        "stages 1, 2, 4: peak memory measured at 100,000 utterances (GiB)": lambda hours: (
            _number(costs["data_stage_peak_mib"] / 1024) if utterances(hours) <= 1e5 else BLANK
        ),
        "stage 5, unigram: memory that grows (GiB)": lambda hours: _number(
            min(utterances(hours), costs["sentence_limit"]) * costs["unigram_bytes_per_sentence"] / _GIB
        ),
        "Shar folder: memory that grows (GiB)": lambda hours: _number(rows(hours) * costs["shar_bytes_per_row"] / _GIB),
        "training from tables: memory per rank that grows (GiB)": lambda hours: _number(
            rows(hours) * costs["table_bytes_per_row"] / _GIB
        ),
        "audio as FLAC (GiB)": disk("flac_bytes_per_hour"),
        "features, two-byte, three speeds (GiB)": disk("two_byte_bytes_per_hour", COPIES),
        "Shar folder of features, float32, three speeds (GiB)": disk("float32_bytes_per_hour", COPIES),
        "archives of stage 3": lambda hours: f"{rows(hours) / costs['rows_per_archive']:,.0f}",
        "training, hours on GPUs": lambda _: BLANK,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def page(text: str) -> str:
    """docs/data/scale.md with its two tables made anew."""
    costs = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    sources = "".join(f"| {name} | {cost['value']:,} | {cost['source']} |\n" for name, cost in costs.items())
    values = {name: float(cost["value"]) for name, cost in costs.items()}
    for part, made in (
        ("plan", table(values)),
        ("costs", "| cost | value | source |\n|---|---|---|\n" + sources),
    ):
        begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + made + end + rest.partition(end)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", default="docs/data/scale.md", help="the page whose tables are made (default docs/data/scale.md)"
    )
    options = parser.parse_args()
    write_text(options.page, page(Path(options.page).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
