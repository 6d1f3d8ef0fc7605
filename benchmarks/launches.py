"""Count what a training step asks of a GPU, without one: launches, host synchronisations, and the host's time.

    python -m benchmarks.launches --output benchmarks/results/launches.md

Steps run on the mock device of the tests (``tests/mock_device.py``). Widths are tiny, so the CPU time of a step without
it is nearly that of the host alone: of Python, the dispatcher and autograd.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Callable, Optional

import torch

from espnet_todm.bench.step_cost import extracted_model, plain_step
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.files import write_text
from tests.mock.cases import OPTIMIZER_STEPS, OPTIMIZERS, Case, mock_outcome, pruned, trained_steps, transducer
from tests.mock_device import DEVICE, MockDevice, on_device
from tests.tiny_model import batch

BLOCKS = 16
STEPS_BEFORE = 2  # before the step that is counted
STOCK = "one model, as in ESPnet"
CTC = Case()


def of(trainer: type[Any], conf: Mapping[str, Any], sizes: Mapping[str, Any], case: Case = CTC) -> Case:
    return replace(case, trainer=trainer, conf=conf, encoder={"num_blocks": BLOCKS, **case.encoder, "sizes": sizes})


UNIFORM = {"large": 0.8, "small": 0.45}
DEEP = {"medium": {"depth": 0.5, "ffn": 0.5}, "small": {"depth": 0.25, "ffn": 0.5, "heads": 0.5}}
CHUNKS = Case(encoder={"causal": True, "chunk": {"frames": [2, 4], "left": [2, 8], "full_share": 0.0}})
STEPS: dict[str, Case] = {
    "single": of(SingleTrainer, {}, DEEP),
    "kd: full, large (80%) and small (45%)": of(KDTrainer, {}, UNIFORM),
    "kd: full, medium and small (half, a quarter of the blocks)": of(KDTrainer, {}, DEEP),
    "kd, chunk masks": of(KDTrainer, {}, DEEP, CHUNKS),
    "OrthoSoftmax, first stage": of(TwoStageTrainer, {"stage1_steps": 1000}, UNIFORM),
    "OrthoSoftmax, second stage": of(TwoStageTrainer, {"stage1_steps": 1}, UNIFORM),
    "kd, CTC/attention": of(KDTrainer, {}, DEEP, Case(ctc_weight=0.3)),
    "kd, RNN-T": of(KDTrainer, {}, DEEP, Case(**transducer())),
    "kd, pruned RNN-T": of(KDTrainer, {}, DEEP, Case(**pruned())),
    "kd, pruned RNN-T, own ranges": of(KDTrainer, {}, DEEP, Case(**pruned(reuse_ranges=False))),
}


def step_rows(utterances: int, rounds: int) -> list[str]:
    """Rows of the table of steps. Factors are to the first row."""
    stock = (
        counted_model(STEPS["single"].build(), utterances),
        host_seconds(STEPS["single"].build(), utterances, rounds, plain_step),
    )
    lines = [row(STOCK, stock[0], stock[0][0], stock[1], stock, 1.0)]
    for name, case in STEPS.items():
        _, counts = mock_outcome(case, utterances=utterances)
        seconds = host_seconds(case.build(), utterances, rounds)
        lines.append(row(name, counts.total, launches_of_parts(case, utterances), seconds, stock, flops(case)))
    return lines


Counted = tuple[int, int]  # launches and synchronisations


def row(name: str, counts: Counted, parts: int, seconds: float, stock: tuple[Counted, float], factor: float) -> str:
    """A row of the table. ``stock``: what the first row has. ``parts``: launches of the step's subnets as models."""
    return (
        f"| {name} | {counts[0]} | {counts[0] / parts:.2f} | {counts[1]} | {1e3 * seconds:.0f} |"
        f" {counts[0] / stock[0][0]:.2f} | {seconds / stock[1]:.2f} | {factor:.2f} |"
    )


def launches_of_parts(case: Case, utterances: int) -> int:
    """Sum of the launches of a step's subnets as models of their own, each with its own front part."""
    model = case.build()
    steps = trained_steps(model, batch(utterances))
    for _ in range(STEPS_BEFORE):
        next(steps)
    model.zero_grad(set_to_none=True)
    assert model.subnet_trainer is not None
    small = (extracted_model(model, subnet) for subnet in model.subnet_trainer.picked(STEPS_BEFORE))
    return sum(counted_model(one, utterances)[0] for one in small)


def counted_model(model: TodmModel, utterances: int) -> Counted:
    """Launches and synchronisations of a step of one model in one autograd graph."""
    with MockDevice() as device:
        model, speech = model.to(DEVICE), on_device(batch(utterances))
        for step in range(2):
            model.zero_grad(set_to_none=True)
            device.counts.clear()
            plain_step(model, speech, step)
    return device.counts.total


def host_seconds(
    model: TodmModel, utterances: int, rounds: int, step_of: Optional[Callable[..., None]] = None
) -> float:
    """Median CPU time of a step without the mock device. ``step_of``: the step, by default the trainer's."""
    speech = batch(utterances)
    steps = trained_steps(model, speech) if step_of is None else _steps(model, speech, step_of)
    times = []
    for _ in range(rounds + 3):
        start = time.process_time()
        next(steps)
        times.append(time.process_time() - start)
    return statistics.median(times[3:])


def _steps(model: TodmModel, speech: Any, step_of: Callable[..., None]) -> Any:
    for step in range(10**6):
        model.zero_grad(set_to_none=True)
        yield step_of(model, speech, step)


def flops(case: Case) -> float:
    """Cost of a step in steps of one full model."""
    model = case.build()
    first = 0 if model.subnet_trainer.picked(2) == model.subnet_trainer.picked(0) else 2
    return float(model.subnet_trainer.model_steps(model.component_table(), first + 1000) / (first + 1000))


def optimizer_rows() -> list[str]:
    """Launches and synchronisations per step, on average."""
    lines = []
    for name, build in OPTIMIZERS.items():
        launches, syncs = mock_outcome(STEPS["single"], build)[1].total
        steps = OPTIMIZER_STEPS - 1
        lines.append(f"| {name} | {launches / steps:.0f} | {syncs / steps:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, nargs="+", default=[8, 32], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=10, help="of the host's time")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = STEPS["single"].build()
    header = "| step | launches | to its parts | syncs | host ms | factor of launches | of host time | of FLOPs |"
    tables = [
        f"## Batches of {utterances} utterances\n\n{header}\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(step_rows(utterances, options.rounds))
        for utterances in options.utterances
    ]
    report = f"""# Launches and host synchronisations

Steps of a Conformer with {BLOCKS} blocks ({len(list(model.parameters()))} tensors) on the mock device: forward and
backward. Factors are to a step of one full model in one autograd graph. FLOPs are those of the encoder. Launches to its
parts: divided by those of the same subnets as models of their own.

{(2 * chr(10)).join(tables)}

## Optimizers, per step

| optimizer | launches | syncs |
| --- | --- | --- |
{chr(10).join(optimizer_rows())}

Synchronisations are those that Python causes. Kernels of torch may wait inside: CUDA's CTC kernel copies its lists of
lengths to the device, about three small copies per call, as in any ESPnet model. Launches are calls of the dispatcher.

torch {torch.__version__}; `python -m benchmarks.launches`
"""
    print(report, end="")
    if options.output:
        write_text(options.output, report)


if __name__ == "__main__":
    main()
