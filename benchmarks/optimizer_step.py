"""Time ScaledAdam's step against torch.optim.AdamW(foreach=True) on the parameters of a Conformer of about 7M.

    python benchmarks/optimizer_step.py --output benchmarks/results/optimizer_step.md

The optimizers take turns, round by round, so that a busy machine slows both. A ratio above --limit ends with status 1.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.util.files import write_text

BASELINE = "AdamW(foreach=True)"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    BASELINE: lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, foreach=True),
    "ScaledAdam": lambda parameters: ScaledAdam(parameters, lr=1e-4),
    "ScaledAdam, clipping_scale=2": lambda parameters: ScaledAdam(parameters, lr=1e-4, clipping_scale=2.0),
    "ScaledAdam, skip_zero_grad": lambda parameters: ScaledAdam(parameters, lr=1e-4, skip_zero_grad=True),
    "ScaledAdam, skip_zero_grad, a third unused": lambda parameters: ScaledAdam(
        without_gradient(parameters), lr=1e-4, skip_zero_grad=True
    ),
}
# Leaving out elements by their gradient is an option with its own price; the limit holds for the formulas.
LIMITED = ("ScaledAdam", "ScaledAdam, clipping_scale=2")


def without_gradient(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The parameters, with zero gradient in the last third of each one's rows, as a supernet's unused parts have."""
    for parameter in parameters:
        parameter.grad[len(parameter) - len(parameter) // 3 :] = 0.0
    return parameters


def conformer() -> torch.nn.Module:
    """12 blocks of 144 channels: many small tensors and some large ones, about 7M parameters."""
    return ConformerEncoder(
        80,
        output_size=144,
        attention_heads=4,
        linear_units=576,
        num_blocks=12,
        macaron_style=True,
        pos_enc_layer_type="rel_pos",
        selfattention_layer_type="rel_selfattn",
        cnn_module_kernel=31,
    )


def prepare(build: Callable[..., torch.optim.Optimizer], device: torch.device) -> torch.optim.Optimizer:
    """An optimizer with its own model and gradients, past the steps in which states and thresholds start."""
    torch.manual_seed(0)
    parameters = list(conformer().to(device).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer = build(parameters)
    for _ in range(12):
        optimizer.step()
    return optimizer


def seconds(optimizer: torch.optim.Optimizer, steps: int, device: torch.device) -> float:
    """Wall time of one step, over ``steps`` steps."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    wait()
    return (time.perf_counter() - start) / steps


def measure(rounds: int, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step by optimizer and round. ``steps`` is a multiple of 4, so that size updates count in full."""
    optimizers = {name: prepare(build, device) for name, build in OPTIMIZERS.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer, steps, device))
    return times


def table(times: dict[str, list[float]]) -> tuple[str, dict[str, float]]:
    """A markdown table, and each optimizer's ratio: the median over rounds of its time by the baseline's beside it."""
    lines = ["| optimizer | ms per step (median) | fastest | ratio (median of rounds) |", "| --- | --- | --- | --- |"]
    ratios = {}
    for name, values in times.items():
        ratios[name] = statistics.median(mine / base for mine, base in zip(values, times[BASELINE]))
        lines.append(
            f"| {name} | {1e3 * statistics.median(values):.1f} | {1e3 * min(values):.1f} | {ratios[name]:.2f} |"
        )
    return "\n".join(lines), ratios


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="steps per round, a multiple of 4")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--limit", type=float, default=2.0, help="largest ratio allowed without skip_zero_grad")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rows, ratios = table(measure(options.rounds, options.steps, device))
    parameters = list(conformer().parameters())
    size = sum(parameter.numel() for parameter in parameters) / 1e6
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, one thread"
    report = (
        f"# One optimizer step, Conformer with {size:.2f}M parameters in {len(parameters)} tensors\n\n{rows}\n\n"
        f"{where}; torch {torch.__version__}; {options.rounds} interleaved rounds of {options.steps} steps; "
        f"`python benchmarks/optimizer_step.py {' '.join(sys.argv[1:])}`\n"
    )
    print(report, end="")
    if options.output:
        write_text(options.output, report)
    if max(ratios[name] for name in LIMITED) > options.limit:
        sys.exit(f"ScaledAdam takes more than {options.limit} times as long as {BASELINE}")


if __name__ == "__main__":
    main()
