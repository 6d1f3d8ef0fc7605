"""Markdown tables, those of errors in the form that sclite and ESPnet print. A cell that was not measured is blank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from espnet_todm.report.experiment import Experiment, SizeResult
from espnet_todm.scoring.scores import Score, rate_cell
from espnet_todm.scoring.significance import paired_difference
from espnet_todm.util.checks import is_number
from espnet_todm.util.markdown import Table


def error_table(scores: Iterable[Score], unit: str = "words") -> Table:
    """sclite's columns in percent, one row per set and size."""
    rows = []
    for score in scores:
        total = score.total(unit)
        edits = (total.correct, total.substitutions, total.deletions, total.insertions, total.errors)
        rates = [*(total.percent(count) for count in edits), total.sentence_error_rate]
        name = "/".join(filter(None, (score.split, score.size)))
        rows.append([name, str(total.sentences), str(total.words), *(f"{rate:.1f}" for rate in rates)])
    return Table(["dataset", "Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err"], rows)


def size_table(experiment: Experiment) -> Table:
    """What each size costs and how well it does: the table by which a size is chosen."""
    header = ["size", "params (M)", "of full (%)", "GFLOPs per s of speech", "RTF median", "RTF p95"]
    header += ["times faster than real time"]
    header += [f"WER {split} [95%]" for split in experiment.splits]
    return Table(header, [_size_row(size, experiment.splits) for size in experiment.sizes])


def difference_table(experiment: Experiment) -> Table:
    """Paired bootstrap of each size against the largest scored on the same utterances."""
    rows = []
    for split in experiment.splits:
        first, *others = (size.scores[split] for size in experiment.sizes if split in size.scores)
        for other in others:
            if other.utterances != first.utterances:
                continue
            found = paired_difference(other.errors(), first.errors(), other.lengths())
            interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
            names = [split, other.size, first.size]
            rows.append([*names, f"{found.points:+.2f}", interval, f"{found.p_value:.3f}"])
    return Table(["dataset", "size", "against", "WER difference (points)", "95%", "p"], rows)


def _size_row(size: SizeResult, splits: Iterable[str]) -> list[str]:
    rates = [size.scores[split] if split in size.scores else None for split in splits]
    return [
        size.name,
        number_cell(size.params, 1e-6, 3),
        number_cell(size.share_of_params, 100.0, 1),
        number_cell(size.flops_per_second, 1e-9, 3),
        number_cell(size.speed.get("rtf_median"), 1.0, 4),
        number_cell(size.speed.get("rtf_p95"), 1.0, 4),
        number_cell(1 / size.rtf if size.rtf else None, 1.0, 0),
        *(rate_cell(score) for score in rates),
    ]


def number_cell(value: Any, factor: float, digits: int) -> str:
    """``value * factor``, or nothing where there is no number."""
    return f"{value * factor:.{digits}f}" if is_number(value) else ""
