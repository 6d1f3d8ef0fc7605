"""Measure what each component of an encoder costs in time on the machine at hand.

Every distinct module runs with some of its components, all of them, and few, in rounds in which all take turns, so that
whatever else the machine does slows all of them. A line through the medians gives what the module takes in any case and
what each component adds. Sums of these are checked against whole subnets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from espnet_todm.components import Subnet
from espnet_todm.elastic.block import ElasticConformerBlock, LayerChoice
from espnet_todm.encoders.supernet import FRAMES_PER_SECOND, Front, SupernetEncoder
from espnet_todm.latency import LatencyTable, fingerprint
from espnet_todm.optim.options import check_number
from espnet_todm.processor import cpu_model
from espnet_todm.sizes import uniform_order

Clock = Callable[[], float]
Shape = tuple[Any, ...]
CHECKED = (1.0, 0.75, 0.5, 0.35)  # shares of the components, of the subnets that predictions are checked on


@torch.no_grad()
def measure_latency(
    encoder: SupernetEncoder,
    seconds: float = 10.0,
    rounds: int = 20,
    threads: int = 1,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Latency of all parts of an encoder on one utterance of so many seconds, with so many threads of this CPU.

    Raises UserError for an argument out of range.
    """
    check_number("seconds", seconds, above=0)
    check_number("rounds", rounds, at_least=1, whole=True)
    check_number("threads", threads, at_least=1, whole=True)
    torch.set_num_threads(threads)
    encoder.eval()
    frames = int(seconds * FRAMES_PER_SECOND)
    features, lengths = torch.randn(1, frames, encoder.input_size), torch.tensor([frames])
    front = encoder.front(features, lengths)
    runs: dict[Any, Callable[[], Any]] = {"front": lambda: encoder.finalise(encoder.front(features, lengths).hidden)}
    for block in encoder.encoders:
        runs.update(_runs_of(block, front))  # type: ignore[arg-type]
    subnets = _checked_subnets(encoder)
    runs.update({("subnet", n): partial(encoder.extract(s).forward, features, lengths) for n, s in enumerate(subnets)})
    medians = {what: value / seconds for what, value in _medians(runs, rounds, clock).items()}
    lines = _lines(medians)
    table = encoder.component_table()
    measured = LatencyTable(
        encoder=fingerprint(table),
        machine={
            "cpu": cpu_model(),
            "threads": threads,
            "torch": torch.__version__,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        },
        seconds=seconds,
        modules={
            f"{layer}/{name}": lines[_shape(name, module)]
            for layer, block in enumerate(encoder.encoders)
            for name, _, module in block.elastic_modules()  # type: ignore[operator]
        },
        layers=[medians.get("norm", 0.0)] * len(encoder.encoders),
        rest=medians["front"],
    )
    timed = measured.applied(table)
    check = [
        (table.share(subnet, "params"), timed.cost(subnet).latency, medians["subnet", n])
        for n, subnet in enumerate(subnets)
    ]
    return LatencyTable(**{**vars(measured), "check": check})


def _runs_of(block: ElasticConformerBlock, front: Front) -> dict[Any, Callable[[], Any]]:
    """The norm and the module, with one component, about half of them, and all; modules of one shape run once."""
    runs: dict[Any, Callable[[], Any]] = {}
    for name, kind, module in block.elastic_modules():
        for count in sorted({1, (module.components + 1) // 2, module.components}):
            arguments = (
                front.hidden,
                name,
                kind,
                module,
                tuple(range(count)),
                LayerChoice(),
                front.positions,
                front.mask,
            )
            runs[_shape(name, module), count] = partial(block._branch, *arguments)
    if hasattr(block, "norm_final"):
        runs["norm"] = partial(block.norm_final, front.hidden)
    return runs


def _shape(name: str, module: torch.nn.Module) -> Shape:
    """What modules of equal cost have in common."""
    return name, *(tuple(parameter.shape) for parameter in module.parameters())


def _checked_subnets(encoder: SupernetEncoder) -> list[Subnet]:
    order = uniform_order(encoder.component_table())
    return [Subnet(f"{share:g}", frozenset(order[: max(1, round(share * len(order)))])) for share in CHECKED]


def _medians(runs: Mapping[Any, Callable[[], Any]], rounds: int, clock: Clock) -> dict[Any, float]:
    """Seconds of each, over rounds in which all take turns; a round before the first one is thrown away."""
    taken: dict[Any, list[float]] = {what: [] for what in runs}
    for _ in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for what, run in runs.items():
            begin = clock()
            run()
            taken[what].append(clock() - begin)
    return {what: statistics.median(values[1:]) for what, values in taken.items()}


def _lines(medians: Mapping[Any, float]) -> dict[Shape, tuple[float, float]]:
    """(fixed, each component) of every shape of module, neither below zero."""
    points: dict[Shape, list[tuple[int, float]]] = {}
    for what, value in medians.items():
        if isinstance(what, tuple) and isinstance(what[0], tuple):
            points.setdefault(what[0], []).append((what[1], value))
    lines = {}
    for shape, of_shape in points.items():
        counts, values = zip(*of_shape)
        fixed, each = nnls(np.column_stack([np.ones(len(counts)), counts]), np.array(values))[0]
        lines[shape] = float(fixed), float(each)
    return lines
