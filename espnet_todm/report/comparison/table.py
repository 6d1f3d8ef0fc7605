"""Tables of a comparison: what each size costs and how well it does, and how far it is from its twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from espnet_todm.models.subnet_trainer import SizeUpdates
from espnet_todm.report.comparison.results import Gap, Results, Row
from espnet_todm.report.tables import number_cell
from espnet_todm.scoring.twins import Rate
from espnet_todm.util.markdown import Table

COVERAGE = (
    "WER is the mean over seeds. The 95% intervals are a bootstrap over seeds and utterances together, where the seeds of a"
    " size and of its twin belong together in pairs."
)
ONE_SEED = "Rows with one seed do not cover seeds: their intervals are over utterances alone."
FEW_SEEDS = (
    "Few seeds tell little about their spread. In simulations in which seeds differ more than utterances do, the intervals"
    " of 2, 3 and 5 seeds held the true difference in 80, 86 and 90% of 300 cases instead of 95%, and `better` stood beside"
    " 11, 8 and 6% of equal trainings instead of 2.5%."
)
VERDICTS = (
    "`better`: the whole interval in points is below 0; `worse`: it is above 0; `equal within ±x`: it holds 0 and reaches x"
    " points to one side."
)


def size_table(results: Results) -> Table:
    """One row for each size and method, the sizes of all methods in the order of the plan. What is not there is blank.

    Costs are means over seeds. ``updates``: of the training; ``of this size``: those in which the size was trained. Those of
    a first stage, in which it has soft gates, are counted apart. ``model-steps``: steps of one full model on the base's
    batches that have as many FLOPs.
    """
    header = ["size", "method", "seeds", *(f"WER {split} [95%]" for split in results.splits)]
    header += ["params (M)", "GFLOPs per s", "budget error (points)"]
    header += ["updates", "of this size", "model-steps", "training hours"]
    rows = [
        _size_row(row, size, results.splits)
        for size in results.sizes
        for row in results.rows.values()
        if size in row.sizes
    ]
    return Table(header, rows)


def _size_row(row: Row, size: str, splits: Sequence[str]) -> list[str]:
    error = row.budget_error(size)
    seeds = f"{len(row.done)} of {len(row.methods)}" if len(row.done) < len(row.methods) else f"{len(row.done)}"
    return [
        *(size, row.name, seeds),
        *(rate_cell(row.rate(size, split)) for split in splits),
        number_cell(row.cost(size, "params"), 1e-6, 3),
        number_cell(row.cost(size, "flops_per_second"), 1e-9, 3),
        "" if error is None else f"{error:+.2f}",
        *_training_cells(row, size),
    ]


def _training_cells(row: Row, size: str) -> list[str]:
    trainings = [trained.training for trained in row.done.values()]
    if not trainings:
        return [""] * 4
    own = [training.size_updates.get(size, SizeUpdates()) for training in trainings]
    sliced, gated = (row.mean(values) or 0 for values in ((o.sliced for o in own), (o.gated for o in own)))
    return [
        number_cell(row.mean(training.updates for training in trainings), 1, 0),
        f"{sliced:.0f}" + (f" + {gated:.0f} gated" if gated else ""),
        number_cell(row.mean(training.model_steps for training in trainings), row.methods[0].speech, 0),
        number_cell(row.mean(training.hours for training in trainings), 1, 2),
    ]


def gap_table(results: Results) -> Table:
    """Each size against its twin on each set, and the mean of a method's sizes against that of their twins."""
    header = ["size", "method", "alone", "params, FLOPs (% more)", "set", "seeds", "WER", "WER alone"]
    header += ["difference (points) [95%]", "difference (%) [95%]", "verdict"]
    rows = []
    for row in results.rows.values():
        groups = [(size,) for size in row.sizes] + ([row.sizes] if len(row.sizes) > 1 else [])
        for sizes in groups:
            name = sizes[0] if len(sizes) == 1 else "mean of sizes"
            gaps = [gap for split in results.splits if (gap := results.gap(row, sizes, split)) is not None]
            rows += [[name, row.name, *_gap_cells(gap)] for gap in gaps]
    return Table(header, rows)


def _gap_cells(gap: Gap) -> list[str]:
    own, twin = gap.rates
    points, percent = gap.difference.points, gap.difference.percent
    costs = ", ".join(f"{more:+.1f}" for more in (gap.more_params, gap.more_flops) if more is not None)
    cells = [gap.twin, costs, gap.split, f"{gap.seeds}", f"{own:.1f}", f"{twin:.1f}"]
    return [*cells, signed_cell(points), signed_cell(percent, 1), gap.difference.verdict]


def rate_cell(rate: Optional[Rate]) -> str:
    """Error rate and its interval in percent, nothing where there is none."""
    return "" if rate is None else f"{rate.rate:.1f} [{rate.low:.1f}, {rate.high:.1f}]"


def signed_cell(rate: Rate, digits: int = 1) -> str:
    """A difference and its interval, nothing where it is not a number."""
    if rate.rate != rate.rate:
        return ""
    return f"{rate.rate:+.{digits}f} [{rate.low:+.{digits}f}, {rate.high:+.{digits}f}]"


def gap_section(results: Results) -> str:
    """Markdown with the differences to twins, empty without any."""
    table = gap_table(results)
    if not table.rows:
        return ""
    seeds = table.header.index("seeds")
    numbers = {int(cells[seeds]) for cells in table.rows}
    notes = ((ONE_SEED, numbers & {1}), (FEW_SEEDS, numbers & {2, 3, 4, 5}))
    words = " ".join([COVERAGE, *(note for note, holds in notes if holds)])
    return f"## Sizes against the same sizes trained alone\n{table.markdown()}\n{words}\n\n{VERDICTS}\n"
