"""Part 4: a supernet and each of its sizes alone, all at once, with as many updates as the time allows, equal for all.

Each is a process of its own: a small model leaves most of a GPU idle, since its host cannot launch kernels faster. First all
measure their speed, side by side. The slowest one's and the time give the number of updates. A later run keeps that plan.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from benchmarks.gpu.corpus import synthetic, unpack
from benchmarks.gpu.features import write_corpus
from benchmarks.gpu.models import read
from benchmarks.gpu.rows import Row, Rows, arguments, logger, machines, where
from benchmarks.gpu.training import SUPERNET
from espnet_todm.scoring.significance import error_rate_interval, paired_difference
from espnet_todm.util.files import read_json, read_optional, write_json
from espnet_todm.util.markdown import markdown_table

# Share of the measured speed to plan with: evaluation and checkpoints take the rest.
SHARE = 0.85
# Seconds at the end for the last evaluation.
LAST = 10.0


def plan(
    state: Path, processes: Sequence[subprocess.Popen[bytes]], names: Sequence[str], end: float, most: int = 10**6
) -> None:
    """Write plan.json, with at most ``most`` updates, once every training has measured its speed, unless there is a plan."""
    while not (state / "plan.json").is_file():
        speeds = [state / f"speed_{name}.json" for name in names]
        if all(path.is_file() for path in speeds):
            slowest = min(read_json(path) for path in speeds)
            updates = min(most, int(slowest * SHARE * max(0.0, end - LAST - time.monotonic())))
            write_json(state / "plan.json", {"updates": max(40, updates // 8 * 8), "updates_per_second": slowest})
        elif not any(process.poll() is None for process in processes) or time.monotonic() > end:
            return
        time.sleep(0.2)


def collect(rows: Rows, state: Path, names: Iterable[str], device: torch.device) -> None:
    """A row for each size of each training, from what it has written so far: its curve, and its test once it is done."""
    if not (state / "plan.json").is_file():
        return
    planned = read_json(state / "plan.json")["updates"]
    for name in names:
        run = read_optional(state / f"run_{name}.json")
        curves: dict[str, dict[int, float]] = {}
        for path in sorted(state.glob(f"dev_{name}_*.json"), key=lambda p: int(p.stem.rpartition("_")[2])):
            for size, found in read_json(path).items():
                curves.setdefault(size, {})[int(path.stem.rpartition("_")[2])] = rate(found)
        test = read_optional(state / f"test_{name}.json")
        for size, curve in curves.items():
            row: Row = {"training": name, "size": size, "updates": planned, "dev_wer": curve, "where": where(device)}
            row.update(updates_done=max(curve), **run[size], **test.get(size, {}))
            if rows.rows.get(f"{name}: {size}") != json.loads(json.dumps({"name": f"{name}: {size}", **row})):
                rows.add(f"{name}: {size}", row)


def rate(row: Row) -> float:
    """Word error rate in percent."""
    return 100.0 * sum(row["errors"]) / sum(row["words"])


def page(rows: Sequence[Row], data: str) -> str:
    found = {(row["training"], row["size"]): row for row in rows}
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    cells = [row_of(size, found.get((SUPERNET, size)), found.get((size, size))) for size in sizes]
    header = ["size", "parameters", "updates", "of them train it in the supernet", "WER supernet", "WER alone"]
    header += ["difference, points [95%]", "relative"]
    curves = [[f"{row['training']}: {row['size']}", *curve(row)] for row in rows]
    marks = [f"{(n + 1) / 8:.1%}" for n in range(8)]
    return f"""# A supernet and its sizes alone, at equal updates

{markdown_table(header, cells)}
Greedy CTC on the test set; intervals are bootstrapped over utterances (pairs of the same utterances for differences), of one
seed. An empty cell was not reached; run again to go on. Data: {data}

Word error rate (%) on the development set by the share of the updates:

{markdown_table(["training: size", *marks], curves)}
{machines(rows)}"""


def row_of(size: str, shared: Optional[Row], alone: Optional[Row]) -> list[str]:
    """Cells of a size. shared, alone: its rows in the supernet and in its own training, where there are any."""
    some = shared or alone or {}
    updates = " / ".join(dict.fromkeys(f"{row['updates_done']} of {row['updates']}" for row in (shared, alone) if row))
    millions = f"{some['parameters'] / 1e6:.2f}M" if "parameters" in some else ""
    cells = [size, millions, updates, str(shared["updates_of_size"]) if shared else "", tested(shared), tested(alone)]
    if not shared or not alone or "errors" not in shared or "errors" not in alone:
        return [*cells, "", ""]
    gap = paired_difference(np.asarray(shared["errors"]), np.asarray(alone["errors"]), np.asarray(shared["words"]))
    relative = f"{100 * gap.points / rate(alone):+.1f}%" if rate(alone) else ""
    return [*cells, f"{gap.points:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]", relative]


def tested(row: Optional[Row]) -> str:
    """The word error rate with its interval, or "" before the test."""
    if row is None or "errors" not in row:
        return ""
    low, high = error_rate_interval(np.asarray(row["errors"]), np.asarray(row["words"]))
    return f"{rate(row):.1f} [{low:.1f}, {high:.1f}]"


def curve(row: Row) -> list[str]:
    every = row["updates"] // 8
    points = {int(update): value for update, value in row["dev_wer"].items()}
    return [f"{points[every * n]:.1f}" if every * n in points else "" for n in range(1, 9)]


def main() -> None:
    parser = arguments(__doc__, 300.0, "stop after this time", smoke="a tiny model; only full alone")
    parser.add_argument(
        "--features", type=Path, help="file of pack_features.py (default with --smoke: a made-up corpus)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("training: stopped"))  # so that the trainings are stopped, too
    log, end, state = logger(), time.monotonic() + options.seconds, options.state / "training"
    state.mkdir(parents=True, exist_ok=True)
    if options.features is None:
        options.features = state / "made_up.npz"
        write_corpus(options.features, synthetic(40))
    log.info("training: unpacking %s", options.features)
    unpack(options.features, state / "corpus")
    config = "smoke" if options.smoke else "train"
    sizes = list(read(config)["encoder_conf"]["sizes"])
    names = [SUPERNET, "full", *([] if options.smoke else sizes)]
    rows = Rows(options.state, options.output, "training", partial(page, data=options.features.name))
    processes = [start(name, config, state, options) for name in names if not (state / f"test_{name}.json").is_file()]
    try:
        plan(state, processes, names, end, *([40] if options.smoke else []))
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            collect(rows, state, names, options.device)
            time.sleep(1.0)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    collect(rows, state, names, options.device)
    if any(not (state / f"test_{name}.json").is_file() for name in names):
        sys.exit("training: not complete; its output is above; run again to go on")


def start(name: str, config: str, state: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu.training", "--name", name, "--config", config]
    command += ["--state", str(state), "--device", str(options.device)]
    if options.smoke:
        command += ["--trial_seconds", "0.5", "--batch_seconds", "15"]
    return subprocess.Popen(command)


if __name__ == "__main__":
    main()
