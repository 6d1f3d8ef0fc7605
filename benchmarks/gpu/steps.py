"""Parts 1 and 3: time and memory of a training step against its lower bound, and the speed of training.

Of each model and method: a supernet step, the steps of its subnets as extracted models, the peak memory of a supernet step
and of one model's, and whole updates (with the optimizer) of the supernet and of the full model alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Callable

import torch

from benchmarks.gpu.models import build, read
from benchmarks.gpu.rows import Row, Rows, arguments, logger, machines, where
from espnet_todm.bench.step_cost import (
    SINGLE,
    SUPERNET,
    Workload,
    measure_rounds,
    plain_step,
    random_batch,
    steps_memory,
    summary,
    supernet_step,
)
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.util.markdown import markdown_table

TOKENS = [str(token) for token in range(500)]
FIXED = {"middle": {"depth": 0.75, "ffn": 0.75}, "min": {"depth": 0.5, "ffn": 0.5}}
SHARES = {"middle": 0.72, "min": 0.45}
MODELS = ("conformer_ctc", "conformer_rnnt", "mh_ssm_ctc")
# Method -> what it changes in the configuration, and the number of the step to measure (None: one of the longest phase).
METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "kd": ({"subnet_trainer": "kd", "encoder_conf": {"sizes": FIXED}}, None),
    "ortho stage 1": (
        {
            "subnet_trainer": "two_stage",
            "subnet_trainer_conf": {"stage1_steps": 10**6},
            "encoder_conf": {"sizes": SHARES},
        },
        1,
    ),
    "ortho stage 2": (
        {"subnet_trainer": "two_stage", "subnet_trainer_conf": {"stage1_steps": 0}, "encoder_conf": {"sizes": SHARES}},
        None,
    ),
}
SMOKE = {"encoder_conf": {"output_size": 32, "linear_units": 64, "num_blocks": 2, "input_channels": 8}}


@dataclass(frozen=True)
class Case:
    """A model, a method, and a batch of ``utterances`` of ``seconds`` each."""

    model: str
    method: str
    utterances: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.model}, {self.method}, {self.utterances} x {self.seconds:g} s"

    def workload(self, device: torch.device, smoke: bool) -> Workload:
        changes, step = METHODS[self.method]
        config = read(self.model, changes)
        if smoke:
            config["encoder_conf"] = {**config["encoder_conf"], **SMOKE["encoder_conf"]}
        model = build(config, TOKENS, device)
        return Workload(model, random_batch(len(TOKENS), 80, self.utterances, self.seconds, str(device)), step)


def cases(smoke: bool) -> list[Case]:
    """The most important ones first. Large batches are bound by arithmetic, small ones by the launches of the host."""
    if smoke:
        return [Case(model, method, 2, 1.0) for model, method in zip(MODELS, METHODS)]
    every = [Case(model, method, 128, 15.0) for method in METHODS for model in MODELS]
    return every[: len(MODELS)] + [Case(model, "kd", 16, 15.0) for model in MODELS] + every[len(MODELS) :]


def updates_per_second(workload: Workload, step: Callable[..., None], device: torch.device, updates: int) -> float:
    """Whole updates: forward, backward, optimizer. The host may run ahead of the device, as in training."""
    model, batch = workload.model.train(), workload.batch
    optimizer = ScaledAdam(model.trained_parameters(), lr=1e-3, clipping_scale=2.0)
    number = workload.first_step()
    start = 0.0
    for update in range(updates + 2):
        if update == 2:
            start = time.perf_counter() if device.type != "cuda" else _synchronised()
        optimizer.zero_grad(set_to_none=True)
        step(model, batch, number + update)
        optimizer.step()
    end = time.perf_counter() if device.type != "cuda" else _synchronised()
    return updates / (end - start)


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(case: Case, device: torch.device, smoke: bool) -> Row:
    """The measurements of a case. Raises torch.cuda.OutOfMemoryError if the batch does not fit."""
    make = partial(case.workload, device, smoke)
    memory = {}
    for mode in (SINGLE, SUPERNET):
        free(device)
        memory[mode] = steps_memory(make, mode)
    free(device)
    workload = make()
    parameters = sum(p.numel() for p in workload.model.parameters())
    labels = int(workload.batch.text_lengths.sum())
    found = summary(measure_rounds(workload, 2 if smoke else 8), memory)
    del workload
    speed = {}
    for mode, step in ((SUPERNET, supernet_step), (SINGLE, plain_step)):
        free(device)
        speed[mode] = updates_per_second(make(), step, device, 2 if smoke else 12)
    return {
        "parameters": parameters,
        **found,
        "updates_per_second": speed,
        "hours_per_second": {mode: v * case.utterances * case.seconds / 3600 for mode, v in speed.items()},
        "labels_per_second": {mode: v * labels for mode, v in speed.items()},
    }


def row_of(case: Case, device: torch.device, smoke: bool) -> Row:
    """The row of a case. Where the GPU has too little memory for it, the row says so."""
    row: Row = {**asdict(case), "where": where(device)}
    try:
        return {**row, **measure(case, device, smoke)}
    except torch.cuda.OutOfMemoryError:
        return {**row, "failed": "out of memory"}


def free(device: torch.device) -> None:
    """Free what the last measurement held, so that it does not count in the next one's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def page(rows: Sequence[Row]) -> str:
    of = ["model", "method", "batch"]
    steps = ["one model's step (ms)", "supernet step (ms)", "factor", "bound", "step / (F + sum E)"]
    memory = ["peak MiB, one model / supernet", "ratio"]
    trained = ["training", "updates per s", "hours of speech per s", "labels per s"]
    return f"""# Cost and speed of a training step in bfloat16

{markdown_table([*of, *steps, *memory], map(cost_cells, rows))}
A step is forward and backward. The bound of the factor is (F + sum E) / (F + E_max), see `espnet_todm/bench/step_cost.py`.
Memory is the peak of what tensors hold (on a CPU: of the whole process).

{markdown_table([*of, *trained], (cells for row in rows for cells in speed_cells(row)))}
An update is a step and the optimizer's (ScaledAdam), on random speech with three labels per second. "single" is the full
model alone, in one autograd graph as in ESPnet.

{machines(rows)}"""


def name_cells(row: Row) -> list[str]:
    millions = f", {row['parameters'] / 1e6:.1f}M" if "parameters" in row else ""
    return [row["model"] + millions, row["method"], f"{row['utterances']} x {row['seconds']:g} s"]


def cost_cells(row: Row) -> list[str]:
    if "failed" in row:
        return [*name_cells(row), row["failed"], *[""] * 6]
    peak = row["peak_memory_mib"]
    return [
        *name_cells(row),
        *(f"{1e3 * row[key]:.0f}" for key in ("single_step_seconds", "supernet_step_seconds")),
        *(f"{row[key]:.2f}" for key in ("factor", "bound")),
        f"{row['factor_to_bound']:.3f}",
        f"{peak[SINGLE]:.0f} / {peak[SUPERNET]:.0f}",
        f"{peak[SUPERNET] / peak[SINGLE]:.3f}",
    ]


def speed_cells(row: Row) -> list[list[str]]:
    """A line for the supernet and one for the full model alone; none where the measurement failed."""
    forms = {"updates_per_second": "{:.2f}", "hours_per_second": "{:.3f}", "labels_per_second": "{:.0f}"}
    modes = row.get("updates_per_second", ())
    return [[*name_cells(row), mode, *(form.format(row[key][mode]) for key, form in forms.items())] for mode in modes]


def main() -> None:
    options = arguments(__doc__, 170.0, "begin no case after this time", smoke="tiny models").parse_args()
    log = logger()
    rows = Rows(options.state, options.output, "step_cost", page)
    end = time.monotonic() + options.seconds
    for case in cases(options.smoke):
        if case.name in rows:
            continue
        if time.monotonic() > end:
            log.warning("step cost: no time left for %s and what follows; run again to go on", case.name)
            return
        log.info("step cost: %s", case.name)
        rows.add(case.name, row_of(case, options.device, options.smoke))


if __name__ == "__main__":
    main()
