"""Time and memory of the transducer loss, full and pruned, by backend: forward and backward.

    python benchmarks/transducer_loss.py --output benchmarks/results/transducer_loss.md

Pruned training also runs the simple loss that picks the nodes, so both are in its numbers, and what it saves is not only
the loss but the joiner on most nodes: the second table has a joiner in all of its rows. Status 1 unless pruned training
is --faster times as fast as torchaudio's full loss and takes a --smaller-th of its memory, with the joiner.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from espnet_todm.bench.step_cost import Memory, in_own_process, memory_mib
from espnet_todm.losses.transducer import pruned_loss, transducer_loss
from espnet_todm.losses.transducer_pruning import gather_ranges, prune_ranges, simple_loss
from espnet_todm.util.files import write_text
from espnet_todm.util.processor import cpu_model

BASELINE = "torchaudio, full"
CASES = (BASELINE, "torch, full", "torch, pruned", "k2, full", "k2, pruned")
TINY = (2, 6, 3, 7)


@dataclass(frozen=True)
class Setting:
    """What is measured. sizes: B, T, U, V; width: rows kept by pruning; dim: of the joiner."""

    sizes: tuple[int, int, int, int]
    width: int
    dim: int
    device: str


class Step:
    """Forward and backward of one case on random scores, all utterances of full length."""

    def __init__(self, case: str, joiner: bool, setting: Setting) -> None:
        self.backend, self.kind = case.split(", ")
        self.joiner, self.setting = joiner, setting
        batch, frames, rows, vocabulary = setting.sizes
        torch.manual_seed(0)
        self.labels = torch.randint(1, vocabulary, (batch, rows), device=setting.device)
        self.lengths, self.label_lengths = (torch.full((batch,), n, device=setting.device) for n in (frames, rows))
        self.inputs: dict[str, Tensor] = {}
        if joiner:
            self._leaf("encoder", batch, frames, setting.dim)
            self._leaf("predictor", batch, rows + 1, setting.dim)
            self._leaf("output", vocabulary, setting.dim)
            self._leaf("am", vocabulary, setting.dim)
            self._leaf("lm", vocabulary, setting.dim)
        elif self.kind == "pruned":
            self._leaf("am", batch, frames, vocabulary)
            self._leaf("lm", batch, rows + 1, vocabulary)
            self._leaf("logits", batch, frames, min(setting.width, rows + 1), vocabulary)
        else:
            self._leaf("logits", batch, frames, rows + 1, vocabulary)

    def _leaf(self, name: str, *shape: int) -> None:
        scale = self.setting.dim**-0.5 if len(shape) == 2 else 1.0
        self.inputs[name] = (torch.randn(shape, device=self.setting.device) * scale).requires_grad_()

    def __call__(self) -> None:
        for tensor in self.inputs.values():
            tensor.grad = None
        (self._pruned() if self.kind == "pruned" else self._full()).sum().backward()

    def _full(self) -> Tensor:
        logits = self.inputs["logits"] if not self.joiner else self._join(*self._parts(), spread=True)
        return transducer_loss(logits, self.labels, self.lengths, self.label_lengths, backend=self.backend)

    def _pruned(self) -> Tensor:
        am, lm = (self.inputs[name] for name in ("am", "lm"))
        if self.joiner:
            am, lm = (x @ weight.T for x, weight in zip(self._parts(), (am, lm)))
        lengths = self.lengths, self.label_lengths
        simple, occupation = simple_loss(am, lm, self.labels, *lengths, am_scale=0.0, lm_scale=0.25)
        ranges = prune_ranges(occupation, *lengths, self.setting.width)
        logits = self._join(*gather_ranges(*self._parts(), ranges)) if self.joiner else self.inputs["logits"]
        return 0.5 * simple + pruned_loss(logits, self.labels, ranges, *lengths, backend=self.backend)

    def _parts(self) -> tuple[Tensor, Tensor]:
        return self.inputs["encoder"], self.inputs["predictor"]

    def _join(self, encoder: Tensor, predictor: Tensor, spread: bool = False) -> Tensor:
        """The sum's tanh through the output layer, on all pairs of rows if ``spread``."""
        if spread:
            encoder, predictor = encoder.unsqueeze(2), predictor.unsqueeze(1)
        return torch.tanh(encoder + predictor) @ self.inputs["output"].T


def cases() -> list[str]:
    """Those whose package is installed."""
    return [case for case in CASES if find_spec(case.split(",")[0]) is not None]


def times(
    joiner: bool, setting: Setting, rounds: int, chosen: Optional[Sequence[str]] = None
) -> dict[str, list[float]]:
    """Seconds of each case (``chosen``, default all) by round; within a round all take turns, after one that is thrown
    away."""
    steps = {case: Step(case, joiner, setting) for case in (cases() if chosen is None else chosen)}
    wait = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    found: dict[str, list[float]] = {case: [] for case in steps}
    for _ in range(rounds + 1):
        for case, step in steps.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            found[case].append(time.perf_counter() - start)
    return {case: values[1:] for case, values in found.items()}


def memory(case: str, joiner: bool, setting: Setting, threads: int) -> Memory:
    """Of three steps, for a process of its own: before them, with all inputs and libraries loaded, and the peak."""
    torch.set_num_threads(threads)
    Step(case, joiner, Setting(TINY, setting.width, setting.dim, setting.device))()
    step = Step(case, joiner, setting)
    on_gpu = setting.device == "cuda"
    forget_peak(on_gpu)
    before = memory_mib(on_gpu)
    for _ in range(3):
        step()
    return Memory(before, memory_mib(on_gpu))


def forget_peak(on_gpu: bool) -> None:
    """Have the peak counted from now on: loading libraries for a moment takes more than what remains of it."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def table(
    seconds: dict[str, list[float]], memories: dict[str, list[Memory]]
) -> tuple[str, dict[str, tuple[float, float]]]:
    """A markdown table, and of each case how many times faster and smaller it is than the baseline."""
    lines = [
        "| loss | ms (median) | ms (fastest) | times as fast | MiB before | peak MiB | added by the step | times as small |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    added = {case: statistics.median(m.peak - m.before for m in values) for case, values in memories.items()}
    ratios = {}
    for case, values in seconds.items():
        faster = statistics.median(base / mine for mine, base in zip(values, seconds[BASELINE]))
        smaller = added[BASELINE] / added[case]
        ratios[case] = faster, smaller
        before, peak = (statistics.median(getattr(m, key) for m in memories[case]) for key in ("before", "peak"))
        lines.append(
            f"| {case} | {1e3 * statistics.median(values):.0f} | {1e3 * min(values):.0f} | {faster:.1f} | "
            f"{before:.0f} | {peak:.0f} | {added[case]:.0f} | {smaller:.1f} |"
        )
    return "\n".join(lines), ratios


def measure(joiner: bool, setting: Setting, options: argparse.Namespace) -> tuple[str, dict[str, tuple[float, float]]]:
    memories = {
        case: [in_own_process(memory, case, joiner, setting, options.threads) for _ in range(options.processes)]
        for case in cases()
    }
    return table(times(joiner, setting, options.rounds), memories)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=3, help="for peak memory, of each kind")
    parser.add_argument("--sizes", type=int, nargs=4, default=(8, 150, 40, 500), metavar=("B", "T", "U", "V"))
    parser.add_argument("--width", type=int, default=5, help="rows of the lattice that pruning keeps in each frame")
    parser.add_argument("--dim", type=int, default=256, help="of the joiner")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--faster", type=float, default=3.0, help="least ratio of time")
    parser.add_argument("--smaller", type=float, default=5.0, help="least ratio of memory")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    setting = Setting(tuple(options.sizes), options.width, options.dim, options.device)
    alone, _ = measure(False, setting, options)
    joined, ratios = measure(True, setting, options)
    cuda = options.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{cpu_model()}, {options.threads} thread(s)"
    counted = "memory allocated to tensors" if cuda else "resident memory of a process"
    batch, frames, rows, vocabulary = options.sizes
    report = f"""# Transducer loss, B, T, U, V = {batch}, {frames}, {rows}, {vocabulary}; pruned to {options.width} rows

Loss alone, given the logits (pruned: with the simple loss and the choice of ranges, given its scores):

{alone}

With a joiner of dimension {options.dim}, tanh(encoder + predictor) and an output layer (pruned: with both layers of the
simple loss too):

{joined}

Forward and backward. Ratios are to {BASELINE}; those of time are medians over {options.rounds} rounds in which all take
turns. Memory is the peak {counted} that does nothing else, medians of
{options.processes}; times as small compares what the step adds.

{where}; torch {torch.__version__}; `python benchmarks/transducer_loss.py {" ".join(sys.argv[1:])}`
"""
    print(report, end="")
    if options.output:
        write_text(options.output, report)
    faster, smaller = ratios["torch, pruned"]
    if faster < options.faster or smaller < options.smaller:
        sys.exit(
            f"pruned training is not {options.faster} times as fast and {options.smaller} times as small as {BASELINE}"
        )


if __name__ == "__main__":
    main()
