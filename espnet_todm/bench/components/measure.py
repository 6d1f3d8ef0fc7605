"""Measure the latency of an encoder's components on the local machine. Only shapes matter, so weights may be random.

Each module is timed as an extracted block that keeps only this module, with several numbers of kept components. A line
fixed + per_component * kept is fitted to the times. Whole models are timed too, to correct and to check the sums
(:mod:`espnet_todm.bench.components.fit`). Everything runs in PyTorch, or as ONNX graphs in onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from typing import Any, Callable, Optional, TypeVar

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from tqdm import tqdm

from espnet_todm.bench.components.fit import FITTED, HELD_OUT, checked_subnets, correct, errors, summarise
from espnet_todm.bench.components.parts import Probe, Shape, distinct_shapes, parts, torch_calls
from espnet_todm.components import FULL, Subnet
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, TORCH
from espnet_todm.encoders.latency import LatencyTable, Line, fingerprint
from espnet_todm.encoders.options import SUPERNET_OPTIONS
from espnet_todm.encoders.supernet import REFERENCE_SECONDS, SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import check_part
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, MEL_BINS
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.processor import cpu_model
from espnet_todm.util.threads import torch_threads

RUNTIMES = (TORCH, ONNXRUNTIME)

K = TypeVar("K", bound=Hashable)
Calls = Mapping[Probe, Callable[[], object]]
Timer = Callable[[Calls, int], Mapping[Probe, float]]


def time_in_turns(
    calls: Mapping[K, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[K, float]:
    """Median seconds of each call. Each round runs all calls, so that other load on the machine affects them equally.

    One more round at the start is discarded.
    """
    seconds: dict[K, list[float]] = {key: [] for key in calls}
    for number in tqdm(range(rounds + 1), desc="latency", unit="round", disable=None):
        for key, call in calls.items():
            start = clock()
            call()
            took = clock() - start
            if number:
                seconds[key].append(took)
    return {key: float(np.median(values)) for key, values in seconds.items()}


def build_encoder(config: Mapping[str, Any], input_size: Optional[int] = None) -> SupernetEncoder:
    """Build the encoder of a training config with random weights and no sizes. Raises UserError if it is no supernet."""
    from espnet2.tasks.asr import encoder_choices

    name, conf = config.get("encoder"), config.get("encoder_conf") or {}
    check_part("encoder", name, conf, encoder_choices.classes, optional=False)
    encoder_class = encoder_choices.get_class(name)
    if not issubclass(encoder_class, SupernetEncoder):
        raise UserError(
            f"encoder: {name!r} is no supernet, so it has no components to measure; use another, like todm_conformer"
        )
    options = {key: value for key, value in conf.items() if key not in SUPERNET_OPTIONS}
    encoder: SupernetEncoder = encoder_class(input_size or config.get("input_size") or MEL_BINS, **options)
    return encoder.eval()


@torch.no_grad()
def measure_latency(
    encoder: SupernetEncoder,
    seconds: float = REFERENCE_SECONDS,
    threads: int = 1,
    rounds: int = 20,
    timer: Optional[Timer] = None,
    runtime: str = TORCH,
) -> LatencyTable:
    """Time the parts of an encoder on one utterance of noise, and fit the table. The encoder is left in eval mode.

    ``timer``: default :func:`time_in_turns`. With one thread it uses CPU time, which other load on the machine hardly
    changes, otherwise the wall clock.

    Raises UserError for an utterance that is too short, for fewer than one thread or round, and for a runtime that is
    unknown or not installed.
    """
    check_number("seconds", seconds)
    frames = int(seconds * FRAMES_PER_SECOND)
    _check(encoder, seconds, frames, threads, rounds, runtime)
    encoder.eval()
    features = torch.randn(1, frames, encoder.input_size, generator=torch.Generator().manual_seed(0))
    checked = checked_subnets(encoder.component_table())
    calls = _calls_in(runtime, encoder, features, [*checked[FITTED], *checked[HELD_OUT]], threads)
    clock = "process_time" if threads == 1 else "perf_counter"
    timer = timer or partial(time_in_turns, clock=getattr(time, clock))
    with torch_threads(threads):
        times = timer(calls, rounds)
    per_second = {probe: value / seconds for probe, value in times.items()}
    machine = {"cpu": cpu_model(), "threads": threads, "runtime": runtime, **_versions(runtime)}
    machine["date"] = date.today().isoformat()
    report = {"utterance_seconds": seconds, "rounds": rounds, "clock": clock}
    return _fit(encoder, distinct_shapes(encoder), checked, per_second, machine, report)


def fit_line(points: Mapping[int, float]) -> Line:
    """Least-squares line through {kept: seconds} with offset and slope of at least 0.

    With a single point the offset is 0.
    """
    kept, seconds = np.array(list(points), dtype=float), np.array(list(points.values()))
    columns = np.stack([np.full(len(kept), float(len(kept) > 1)), kept], axis=1)
    return Line(*map(float, nnls(columns, seconds)[0]))


def _calls_in(
    runtime: str, encoder: SupernetEncoder, features: Tensor, subnets: Sequence[Subnet], threads: int
) -> Calls:
    """The timed parts as calls of a runtime."""
    if runtime == TORCH:
        return torch_calls(parts(encoder, features, subnets))
    from espnet_todm.bench.components.onnx import converted, onnx_calls

    return onnx_calls(parts(encoder, features, subnets, converted), threads)


def _fit(
    encoder: SupernetEncoder,
    shapes: Sequence[Shape],
    checked: Mapping[str, Sequence[Subnet]],
    times: Mapping[Probe, float],
    machine: Mapping[str, Any],
    report: Mapping[str, Any],
) -> LatencyTable:
    """Build the table from median times in seconds per second of speech."""
    norm = times.get(Probe("norm"), 0.0)
    modules: dict[tuple[int, str], Line] = {}
    points = []
    for shape in shapes:
        measured = {count: times[Probe("block", shape.kept(count))] - norm for count in shape.counts()}
        line = fit_line({count: max(0.0, value) for count, value in measured.items()})
        modules.update(dict.fromkeys([(layer, shape.module) for layer in shape.layers], line))
        by_count = {str(count): value for count, value in measured.items()}
        points.append({"module": shape.module, "layers": list(shape.layers), "measured": by_count})
    layers = {n: norm if hasattr(block, "norm_final") else 0.0 for n, block in enumerate(encoder.encoders)}
    rest = times[Probe("front")] + times[Probe("finalise")]
    plain = encoder.component_table()
    parts = LatencyTable(fingerprint(encoder, plain), modules, layers, rest, machine, {})
    wholes = {use: {subnet: times[Probe("whole", subnet)] for subnet in subnets} for use, subnets in checked.items()}
    corrected, factors = correct(parts, plain, wholes[FITTED])
    fit = {use: errors(corrected.apply(plain), measured) for use, measured in wholes.items()}
    told = {
        **report,
        "points": points,
        "corrections": factors,
        "fit": fit,
        HELD_OUT: summarise(fit[HELD_OUT]),
        "held_out_uncorrected": summarise(errors(parts.apply(plain), wholes[HELD_OUT])),
    }
    return replace(corrected, report=told)


def summary(table: LatencyTable) -> str:
    """Describe a measurement in one line."""
    full, machine, error = table.report["fit"][FITTED][FULL], table.machine, table.report[HELD_OUT]
    order = error["rank_correlation"]
    return (
        f"full encoder {1000 * full['measured']:.2f} ms per second of speech in {machine['runtime']} on {machine['cpu']},"
        f" {machine['threads']} thread(s); on {error['subnets']} subnets held out, predictions are off by"
        f" {error['mean_absolute_percentage_error']:.1%} on average, {error['largest_error']:+.1%} at most"
        + ("" if order is None else f", rank correlation {order:.3f}")
    )


def _versions(runtime: str) -> dict[str, str]:
    """Versions of PyTorch and of the runtime."""
    return {TORCH: torch.__version__, **({runtime: version(runtime)} if runtime != TORCH else {})}


def _check(encoder: SupernetEncoder, seconds: float, frames: int, threads: int, rounds: int, runtime: str) -> None:
    check_choice("runtime", runtime, RUNTIMES)
    check_number("threads", threads, at_least=1, whole=True)
    check_number("rounds", rounds, at_least=1, whole=True)
    if frames < 1 or encoder.subsampled(frames) < 1:
        raise UserError(f"seconds: {seconds} is too short an utterance for this encoder's subsampling; give more")
