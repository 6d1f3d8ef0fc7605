"""What other commands measured of an experiment, as sections of its page: latency, parity, search, words in non-speech.

Each reads the JSON that a command left in the experiment's folder. What is not there has no section, and a column that
no record has is left out, so that files of older and newer releases can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Optional

from matplotlib.figure import Figure

from espnet_todm.data.nonspeech import KINDS
from espnet_todm.encoders.latency import (
    FORMAT as COMPONENTS,  # a table of components' latencies, which an older release gave the same file name
)
from espnet_todm.errors import UserError
from espnet_todm.report.svg import INCHES, Picture, inline_svg, plot_style
from espnet_todm.util.files import PathLike, read_optional
from espnet_todm.util.markdown import Table, link
from espnet_todm.util.palette import RULE, STYLES

LATENCY, PARITY, SEARCH = "model_latency.json", "onnx/parity.json", "search/search.json"
NONSPEECH = "nonspeech.json"
"""Below an experiment; parity also below each of its extracted sizes."""


class Column(NamedTuple):
    """Key of a record, its name in the table, and how a number is shown: multiplied, in which format."""

    key: str
    name: str
    unit: float = 1.0
    form: str = "g"


LATENCY_COLUMNS = (
    Column("size", "size"),
    Column("runtime", "runtime"),
    Column("precision", "precision"),
    Column("threads", "threads"),
    Column("rtf", "RTF", form=".4f"),
    Column("faster", "times faster than real time", form=".0f"),
    Column("latency_p50_ms", "p50 (ms)", form=".1f"),
    Column("latency_p95_ms", "p95 (ms)", form=".1f"),
    Column("chunk_seconds", "chunk (s)", form=".2f"),
    Column("chunk_p50_ms", "chunk p50 (ms)", form=".2f"),
    Column("chunk_p95_ms", "chunk p95 (ms)", form=".2f"),
    Column("first_word_p50_ms", "first word p50 (ms)", form=".0f"),
    Column("first_word_p95_ms", "first word p95 (ms)", form=".0f"),
    Column("end_p50_ms", "end p50 (ms)", form=".0f"),
    Column("end_p95_ms", "end p95 (ms)", form=".0f"),
    Column("startup_ms", "start (ms)", form=".0f"),
    Column("peak_mib", "peak memory (MiB)", form=".0f"),
    Column("above_runtime_mib", "above the runtime's (MiB)", form=".1f"),
    Column("file_mib", "file (MiB)", form=".2f"),
    Column("speedup", "speed-up", form=".2f"),
    Column("ideal", "ideal, by FLOPs", form=".2f"),
    Column("of_ideal", "of ideal", form=".2f"),
)
RATE_COLUMNS = (
    Column("model", "model"),
    Column("of", "runtime"),
    Column("wer", "WER (%)", form=".2f"),
    Column("changed", "transcripts unlike PyTorch's"),
)
STEP_COLUMNS = (
    Column("name", "step"),
    Column("of", "of"),
    Column("against", "against"),
    Column("difference", "largest difference", form=".2g"),
    Column("limit", "allowed", form=".2g"),
    Column("utterance", "where"),
    Column("holds", "holds"),
)
NONSPEECH_COLUMNS = (
    Column("size", "size"),
    Column("runtime", "runtime"),
    Column("precision", "precision"),
    Column("all", "words per minute", form=".1f"),
    *(Column(kind, f"in {kind}", form=".1f") for kind in KINDS),
)
AMOUNTS = {
    "wer": ("WER (%)", 1.0, ".2f"),
    "cer": ("CER (%)", 1.0, ".2f"),
    "loss": ("loss", 1.0, ".4f"),
    "params": ("params (M)", 1e-6, ".3f"),
    "flops": ("GFLOPs per s of speech", 1e-9, ".3f"),
    "latency": ("encoder (ms per s of speech)", 1e3, ".2f"),
}
"""Scores and costs of a search."""


class Captioned(NamedTuple):
    """A table, what it shows, and whether that is for those who ask for it."""

    caption: str
    table: Table
    folded: bool = False


class Section(NamedTuple):
    """A section of a page. sources: links to the files that it was made from."""

    anchor: str
    title: str
    words: list[str]
    tables: list[Captioned]
    pictures: list[Picture]
    sources: list[str]


def latency_file(experiment: Path) -> Path:
    """What ``bench models`` left of an experiment; an older release called it latency.json."""
    path = experiment / LATENCY
    return path if path.is_file() else experiment / "latency.json"


def latency_files(experiment: Path) -> list[Path]:
    """All that ``bench models`` left: model_latency.json, and others such as model_latency_streaming.json."""
    stem, _, end = LATENCY.partition(".")
    return [latency_file(experiment), *sorted(experiment.glob(f"{stem}_*.{end}"))]


def measured_sections(experiment: PathLike, home: PathLike) -> list[Section]:
    """One for each kind of file that is there. home: the page's folder.

    Raises UserError when a file holds something else.
    """
    folder = Path(experiment)
    parity = [folder / PARITY, *sorted(folder.glob(f"subnets/*/{PARITY}"))]
    found: list[Section] = []
    for make, paths in (
        (_latency, latency_files(folder)),
        (_parity, parity),
        (_search, [folder / SEARCH]),
        (_nonspeech, [folder / NONSPEECH]),
    ):
        read = {path: read_optional(path) for path in paths if path.is_file()}
        there = [path for path, one in read.items() if one.get("format") != COMPONENTS]
        stored = [read[path] for path in there]
        try:
            section = make(stored, [link(path, home) for path in there]) if stored else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{there[0]}: not what the page can show ({error!r}); make it again or remove it") from None
        found += [section] if section else []
    return found


def records_table(records: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """A row for each record, of those columns that one of them has."""
    shown = [column for column in columns if any(record.get(column.key) is not None for record in records)]
    rows = [[_cell(record.get(column.key), column) for column in shown] for record in records]
    return Table([column.name for column in shown], rows)


def _cell(value: Any, column: Column) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return format(value * column.unit, column.form)
    return value if isinstance(value, str) else ""


def _latency(stored: Sequence[Mapping[str, Any]], sources: list[str]) -> Section:
    words = [latency_words(one) for one in stored]
    caption = "Real-time factor, latency of an utterance and memory, by size, runtime, precision and threads"
    tables = [Captioned(_of_format(caption, one), latency_table(one)) for one in stored]
    return Section("latency", "Latency", words, tables, [], sources)


def latency_words(stored: Mapping[str, Any]) -> str:
    """Where a file of ``bench models`` was measured, and on how much."""
    machine = stored.get("machine") or {}
    runtimes = dict.fromkeys(str(row.get("runtime")) for row in stored["results"])
    named = [f"{runtime} {machine[runtime]}" for runtime in runtimes if runtime in machine]
    facts = [str(machine["cpu"])] if "cpu" in machine else []
    facts += [f"{stored[key]} {key}" for key in ("utterances", "rounds") if key in stored]
    return _of_format("Measured by the runtimes that devices use", stored) + ": " + ", ".join([*facts, *named]) + "."


def latency_table(stored: Mapping[str, Any], size: Optional[str] = None) -> Table:
    """The figures in a file of ``bench models``: of all sizes, or of one."""
    results = [{**row, "faster": 1 / row["rtf"] if row.get("rtf") else None} for row in stored["results"]]
    return records_table([row for row in results if size in (None, row["size"])], LATENCY_COLUMNS)


def _of_format(words: str, stored: Mapping[str, Any]) -> str:
    return f"{words} ({stored['graphs']})" if "graphs" in stored else words


def _parity(stored: Sequence[Mapping[str, Any]], sources: list[str]) -> Section:
    """Word error rates of all models in one table, then every step of each."""
    rates = [{**rate, "model": _name(one)} for one in stored for rate in one["rates"]]
    tables = [Captioned("Word error rate of each size by what ran it", records_table(rates, RATE_COLUMNS))]
    words = []
    for one in stored:
        words.append(
            f"{_name(one)}: {'all steps hold' if one['holds'] else 'PARTED'}, {len(one['steps'])} steps on"
            f" {one['utterances']} utterances."
        )
        tables.append(Captioned(f"Steps of {_name(one)}", records_table(one["steps"], STEP_COLUMNS), folded=True))
    return Section("parity", "Parity", words, tables, [], sources)


def _nonspeech(stored: Sequence[Mapping[str, Any]], sources: list[str]) -> Section:
    caption = "Words that a size writes in a minute of sounds without speech, by what ran it"
    table = records_table(stored[0]["results"], NONSPEECH_COLUMNS)
    words = [
        f"{stored[0]['seconds'] / 60:.1f} minutes of made silence, noise, hum, tones and knocks; all words are wrong."
    ]
    return Section("nonspeech", "Where nobody speaks", words, [Captioned(caption, table)], [], sources)


def _name(report: Mapping[str, Any]) -> str:
    """The size that a parity report is of: the name of its folder."""
    return Path(str(report["model"])).name


def _search(stored: Sequence[Mapping[str, Any]], sources: list[str]) -> Section:
    """The Pareto set of the search, and all that was tried, beside what other methods tried."""
    search = stored[0]
    objectives, methods = list(search["objectives"]), search["methods"]
    flat = {name: [{**row, **row["scores"], **row["costs"]} for row in rows] for name, rows in methods.items()}
    first = next(iter(flat))
    front = sorted((row for row in flat[first] if row["name"] in search["pareto"]), key=lambda row: -row[objectives[0]])
    columns = [Column("name", "subnet"), Column("proposed_by", "proposed by")]
    columns += [Column(key, *AMOUNTS.get(key, (key, 1.0, "g"))) for key in objectives]
    words = [
        f"{name}: {len(rows)} subnets" + _volume(search.get("hypervolume", {}).get(name)) + "."
        for name, rows in flat.items()
    ]
    score = next((key for key in ("wer", "cer", "loss") if key in objectives), objectives[0])
    pictures = [_search_picture(flat, score, cost) for cost in objectives if cost != score]
    table = Captioned(f"Subnets that none of {first} beats", records_table(front, columns))
    return Section("search", "Search", words, [table], pictures, sources)


def _volume(share: Optional[float]) -> str:
    return "" if share is None else f", hypervolume {share:.4f}"


def _search_picture(methods: Mapping[str, Sequence[Mapping[str, Any]]], score: str, cost: str) -> Picture:
    """Every subnet as a mark, a method to a colour."""
    (x_label, x_unit, _), (y_label, y_unit, _) = (AMOUNTS.get(key, (key, 1.0, "g")) for key in (cost, score))
    words = f"{y_label} against {x_label} of all subnets that were tried"
    with plot_style(f"search-{cost}"):
        width, height = INCHES  # names of methods are long: the legend stands above
        figure = Figure(figsize=(width, height - 0.3 + 0.22 * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        for (name, rows), (color, mark, _) in zip(methods.items(), cycle(STYLES)):
            points = [(row[cost] * x_unit, row[score] * y_unit) for row in rows if cost in row and score in row]
            axes.plot(*zip(*points), mark, color=color, label=name, markersize=4) if points else None
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper left", frameon=False)
        return Picture(inline_svg(figure, words), words)
