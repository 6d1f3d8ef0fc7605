"""Part 2: time and memory of this package's transducer losses, full and pruned, against torchaudio's."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.gpu.rows import Row, Rows, arguments, logger, machines, where
from benchmarks.transducer_loss import BASELINE, TINY, Setting, Step, cases, memory, times
from espnet_todm.errors import one_line
from espnet_todm.util.markdown import markdown_table

# B, T, U, V: the CPU table's, then 15 s of speech in 500 BPE units.
SIZES = ((8, 150, 40, 500), (32, 375, 45, 500), (128, 375, 45, 500))
SMOKE = ((2, 20, 5, 20),)


def measure(sizes: tuple[int, int, int, int], joiner: bool, device: torch.device, rounds: int) -> list[Row]:
    """A row for each loss. Memory is measured here, in this process: on a GPU the count of allocated tensors is exact."""
    setting = Setting(sizes, width=5, dim=256, device=str(device))
    of = {"sizes": sizes, "joiner": joiner, "where": where(device)}
    failures = {case: failure(case, joiner, replace(setting, sizes=TINY)) for case in cases()}
    running = [case for case, reason in failures.items() if not reason]
    seconds = times(joiner, setting, rounds, running)
    free(device)
    rows: list[Row] = [{**of, "loss": case, "failed": reason} for case, reason in failures.items() if reason]
    for case in running:
        held = memory(case, joiner, setting, torch.get_num_threads())
        free(device)
        row = {**of, "loss": case, "seconds": statistics.median(seconds[case]), "added_mib": held.peak - held.before}
        if BASELINE in seconds:
            row["times_as_fast"] = statistics.median(b / s for b, s in zip(seconds[BASELINE], seconds[case]))
        rows.append(row)
    return rows


def failure(case: str, joiner: bool, setting: Setting) -> str:
    """Why a loss does not run here (such as a torchaudio without CUDA kernels), or ""."""
    try:
        Step(case, joiner, setting)()
    except Exception as error:  # of other packages
        return one_line(error, 80)
    return ""


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def page(rows: Sequence[Row]) -> str:
    base = {
        (*row["sizes"], row["joiner"]): row["added_mib"] for row in rows if row["loss"] == BASELINE and "seconds" in row
    }
    cells = []
    for row in rows:
        of = [", ".join(map(str, row["sizes"])), "loss and joiner" if row["joiner"] else "loss", row["loss"]]
        if "failed" in row:
            cells.append([*of, row["failed"], "", "", ""])
            continue
        added, faster = base.get((*row["sizes"], row["joiner"])), row.get("times_as_fast")
        smaller = f"{added / row['added_mib']:.1f}" if added and row["added_mib"] > 0 else ""
        speed = [f"{1e3 * row['seconds']:.2f}", "" if faster is None else f"{faster:.1f}"]
        cells.append([*of, *speed, f"{row['added_mib']:.0f}", smaller])
    header = ["B, T, U, V", "measured", "loss", "ms", "times as fast", "MiB added", "times as small"]
    return f"""# Transducer losses

{markdown_table(header, cells)}
Forward and backward in float32, medians; ratios are to {BASELINE}. Pruned: five rows of the lattice, with the simple loss
that picks them. The joiner has dimension 256. See `benchmarks/transducer_loss.py`.

{machines(rows)}"""


def main() -> None:
    options = arguments(__doc__, 60.0, "begin no measurement after this time", smoke="a tiny lattice").parse_args()
    log = logger()
    rows = Rows(options.state, options.output, "transducer_loss", page)
    end = time.monotonic() + options.seconds
    for sizes in SMOKE if options.smoke else SIZES:
        for joiner in (False, True):
            name = f"{', '.join(map(str, sizes))}{', joiner' if joiner else ''}"
            if any(done.startswith(f"{name}: ") for done in rows.rows):
                continue
            if time.monotonic() > end:
                log.warning("transducer losses: no time left for %s; run again to go on", name)
                return
            log.info("transducer losses: %s", name)
            for row in measure_or_fail(sizes, joiner, options.device, 2 if options.smoke else 9):
                rows.add(f"{name}: {row['loss']}", row)


def measure_or_fail(sizes: tuple[int, int, int, int], joiner: bool, device: torch.device, rounds: int) -> list[Row]:
    """The rows of a setting, or one that says that the GPU has too little memory for it."""
    try:
        return measure(sizes, joiner, device, rounds)
    except torch.cuda.OutOfMemoryError:
        return [{"sizes": sizes, "joiner": joiner, "loss": "all", "failed": "out of memory", "where": where(device)}]


if __name__ == "__main__":
    main()
