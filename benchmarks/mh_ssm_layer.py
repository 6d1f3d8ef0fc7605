"""Time and memory of the multi-head state space layer against self-attention, forward and backward.

    python benchmarks/mh_ssm_layer.py --output benchmarks/results/mh_ssm_layer.md

All layers have the same width and number of heads, and take turns within a round. Every length has about as many frames in
its batch, so a cost that is linear in the length would be the same in every column.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from functools import partial
from typing import Callable, Optional
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.bench.step_cost import memory_mib
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import Context, ElasticModule, KeepIndices
from espnet_todm.elastic.state_space import ElasticStateSpace
from espnet_todm.util.files import write_text
from espnet_todm.util.processor import cpu_model

SSM = "MH-SSM"


class FusedAttention(ElasticAttention):
    """The same attention by torch's fused kernel, which never holds all scores. It has no place for relative positions."""

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        query, key, value = (self._heads(x, f"linear_{name}", kept) for name in "qkv")
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.linear_out(mixed.transpose(1, 2).flatten(2))


def state_space(size: int, heads: int, **options: bool) -> ElasticModule:
    return ElasticStateSpace(size, heads, size // heads, nn.SiLU(), **options)


def attention(
    size: int, heads: int, kind: type[ElasticAttention] = ElasticAttention, relative: bool = False
) -> ElasticModule:
    return kind(size, heads, size // heads, 0.0, relative)


LAYERS: dict[str, Callable[[int, int], ElasticModule]] = {
    SSM: state_space,
    "MH-SSM, causal": partial(state_space, bidirectional=False),
    "attention": attention,
    "attention, relative positions": partial(attention, relative=True),
    "attention, fused kernel": partial(attention, kind=FusedAttention),
}
Step = Callable[[], None]


def make_step(name: str, batch: int, frames: int, size: int, heads: int) -> Step:
    """Forward and backward of one layer on noise, gradients of its input included."""
    torch.manual_seed(0)
    layer = LAYERS[name](size, heads)
    x = torch.randn(batch, frames, size, requires_grad=True)
    positions = torch.randn(1, 2 * frames - 1, size) if getattr(layer, "relative", False) else None
    context = Context(positions, torch.ones(batch, 1, frames, dtype=torch.bool))

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer.run(x, context, None, None).sum().backward()

    return step


def measure_time(
    names: list[str], rounds: int, batch: int, frames: int, size: int, heads: int
) -> dict[str, list[float]]:
    """Seconds of each layer in every round; a round before the first does not count."""
    steps = {name: make_step(name, batch, frames, size, heads) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memory(make: Callable[[], Step]) -> float:
    """MiB that a step needs at its peak, over what its process has before it, in a process of its own."""
    # By default glibc keeps a varying part of what is freed.
    steady = mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**18)})
    with steady, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_step_in_child, (make, torch.get_num_threads()))


def _step_in_child(make: Callable[[], Step], threads: int) -> float:
    torch.set_num_threads(threads)
    step = make()
    before = memory_mib(on_gpu=False)
    step()
    return memory_mib(on_gpu=False) - before


def table(title: str, lengths: list[int], cells: dict[str, dict[int, list[float]]], unit: str) -> str:
    """One row per layer: medians, and in brackets the median of how many times the MH-SSM's; empty where it was not run."""
    lines = [f"| {title} | " + " | ".join(f"T = {n}, {unit}" for n in lengths) + " |"]
    lines.append("| --- " * (len(lengths) + 1) + "|")
    for name, values in cells.items():
        shown = []
        for n in lengths:
            ratios = [own / ssm for own, ssm in zip(values.get(n, []), cells[SSM][n])]
            shown.append(f"{statistics.median(values[n]):.0f} ({statistics.median(ratios):.2f}x)" if ratios else "")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 2000, 8000], help="frames of an utterance")
    parser.add_argument("--frames", type=int, default=8000, help="of a batch")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--longest_relative", type=int, default=2000, help="relative positions up to this length only")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    times, memory, flops = ({name: {} for name in LAYERS} for _ in range(3))  # layer -> T -> values
    for frames in options.lengths:
        batch = max(1, options.frames // frames)
        names = [n for n in LAYERS if not n.endswith("positions") or frames <= options.longest_relative]
        shape = {"batch": batch, "frames": frames, "size": options.size, "heads": options.heads}
        for name in names:
            memory[name][frames] = [measure_memory(partial(make_step, name, **shape))]
            flops[name][frames] = [LAYERS[name](options.size, options.heads).flops(frames) * batch / 1e6]
        for name, seconds in measure_time(names, options.rounds, **shape).items():
            times[name][frames] = [1e3 * value for value in seconds]
    params = {
        name: sum(p.numel() for p in make(options.size, options.heads).parameters()) for name, make in LAYERS.items()
    }
    report = f"""# The multi-head state space layer against self-attention: {options.size} channels, {options.heads} heads

Forward and backward of one layer on about {options.frames} frames in utterances of T frames.

{table("time", options.lengths, times, "ms")}

{table("peak memory", options.lengths, memory, "MiB")}

{table("forward, as costs count it", options.lengths, flops, "MFLOPs")}

| | {" | ".join(LAYERS)} |
{"| --- " * (len(LAYERS) + 1)}|
| parameters | {" | ".join(map(str, params.values()))} |

Times are medians over {options.rounds} rounds in which the layers take turns; in brackets, the median over rounds of how
many times the MH-SSM's. Memory is what one step needs at its peak over what its process, which does nothing else, had
before it. MH-SSM: both directions where not causal, inter-head gating, 16 states. The encoders of this package use
attention that holds all scores, as ESPnet's; with relative positions it is not run above T = {options.longest_relative}.

{cpu_model()}, {options.threads} thread(s); torch {torch.__version__}; \
`python benchmarks/mh_ssm_layer.py {" ".join(sys.argv[1:])}`
"""
    print(report, end="")
    if options.output:
        write_text(options.output, report)


if __name__ == "__main__":
    main()
