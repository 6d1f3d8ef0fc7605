"""One table of the sizes of several experiments: what each costs, how well it does, its exported files and their speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_todm.deploy.onnx.folder import PRECISIONS
from espnet_todm.deploy.runtime.base import ONNXRUNTIME
from espnet_todm.errors import UserError
from espnet_todm.report.experiment import SizeResult, load_experiment
from espnet_todm.report.measured import latency_file
from espnet_todm.report.tables import number_cell
from espnet_todm.scoring.scores import rate_cell
from espnet_todm.util.files import PathLike, read_optional
from espnet_todm.util.markdown import Table

Measured = Mapping[tuple[str, str], Mapping[str, Any]]  # (size, precision) -> a result of bench models


def overview(folders: Sequence[PathLike], split: str) -> Table:
    """A row for each size of each experiment, the largest first; blank where something was not measured.

    split: the set whose word error rates are shown. Speed is onnxruntime's on one thread, in ms of the processor's time per
    second of speech: other work on the machine hardly changes it, another machine does.

    Raises UserError when an experiment was not scored on that set.
    """
    loaded = [(load_experiment(folder), _measured(Path(folder))) for folder in folders]
    for experiment, _ in loaded:
        if split not in experiment.splits:
            raise UserError(
                f"set: {split!r} was not scored in {experiment.folder}; there are: {', '.join(experiment.splits)}"
            )
    there = {precision for _, measured in loaded for _, precision in measured}
    precisions = [precision for precision in PRECISIONS if precision in there]
    header = ["experiment", "size", "params (M)", "MFLOPs per s of speech", f"WER {split} [95%]"]
    header += [f"{precision} (MiB)" for precision in precisions]
    header += [f"{precision} (CPU ms per s of speech)" for precision in precisions]
    rows = [
        [experiment.tag, *_cells(size, split), *_speed([measured.get((size.name, each), {}) for each in precisions])]
        for experiment, measured in loaded
        for size in experiment.sizes
    ]
    return Table(header, rows)


def _measured(experiment: Path) -> Measured:
    """What bench models left there of onnxruntime on one thread."""
    path = latency_file(experiment)
    try:
        return {
            (result["size"], result["precision"]): result
            for result in read_optional(path).get("results", [])
            if result["runtime"] == ONNXRUNTIME and result["threads"] == 1
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no file of bench models ({error!r}); make it again") from None


def _cells(size: SizeResult, split: str) -> list[str]:
    costs = number_cell(size.params, 1e-6, 2), number_cell(size.flops_per_second, 1e-6, 0)
    return [size.name, *costs, rate_cell(size.scores.get(split))]


def _speed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sizes of the files, then times, of each precision."""
    columns = (("file_mib", 1.0, 1), ("cpu_seconds_per_second", 1000.0, 2))
    return [number_cell(result.get(key), unit, digits) for key, unit, digits in columns for result in results]
