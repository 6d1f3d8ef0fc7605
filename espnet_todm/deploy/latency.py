"""Measure the latency of an encoder's components on the machine at hand, weights or none: only shapes matter.

A module is timed as the small model that keeps nothing else, at several numbers of kept components, and its time is fitted
as fixed + per_component * kept. How well the sum of parts predicts whole models is measured at the same time and told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Callable, Optional, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from espnet_todm.components import FULL, ComponentTable, Key, Subnet
from espnet_todm.deploy.speed import torch_threads
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.supernet import FRAMES_PER_SECOND, REFERENCE_SECONDS, SUPERNET_OPTIONS, SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.latency import LatencyTable, Line, fingerprint
from espnet_todm.optim.options import check_number
from espnet_todm.options import check_part
from espnet_todm.processor import cpu_model

INPUT_SIZE = 80  # features of a frame where a config does not say
COUNTS = 5  # numbers of kept components at which a module is timed, at most
CHECKED_SHARES = (0.75, 0.5, 0.25)  # density of the random subnets that the fit is checked on

K = TypeVar("K", bound=Hashable)
Calls = Mapping["Probe", Callable[[], object]]


@dataclass(frozen=True)
class Probe:
    """What is timed: the "front", what comes after the last block ("finalise"), a block's final "norm", a "block" that is
    a subnet of one module, or a "whole" extracted subnet."""

    part: str
    subnet: Optional[Subnet] = None


Timer = Callable[[Calls, int], Mapping[Probe, float]]


@dataclass(frozen=True)
class Shape:
    """Modules of one name and one shape: ``layers`` that have it, and into how many components it is cut."""

    module: str
    layers: tuple[int, ...]
    components: int

    def kept(self, count: int) -> Subnet:
        """The first ``count`` components of the first of these modules, and nothing else."""
        return Subnet("probe", frozenset(Key(self.layers[0], self.module, index) for index in range(count)))

    def counts(self) -> list[int]:
        """Numbers of components to time it at, evenly from one to all."""
        return sorted({round(n) for n in np.linspace(1, self.components, min(COUNTS, self.components))})


def time_in_turns(
    calls: Mapping[K, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[K, float]:
    """Median seconds of each call. All take turns in every round, so that a slow moment of the machine hits all alike.

    One round goes before, uncounted.
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
    """The encoder of a training config with fresh weights and no sizes. Raises UserError when it is no supernet."""
    from espnet2.tasks.asr import encoder_choices

    name, conf = config.get("encoder"), config.get("encoder_conf") or {}
    check_part("encoder", name, conf, encoder_choices.classes, optional=False)
    encoder_class = encoder_choices.get_class(name)
    if not issubclass(encoder_class, SupernetEncoder):
        raise UserError(
            f"encoder: {name!r} is no supernet, so it has no components to measure; use another, like todm_conformer"
        )
    options = {key: value for key, value in conf.items() if key not in SUPERNET_OPTIONS}
    encoder: SupernetEncoder = encoder_class(input_size or config.get("input_size") or INPUT_SIZE, **options)
    return encoder.eval()


@torch.no_grad()
def measure_latency(
    encoder: SupernetEncoder,
    seconds: float = REFERENCE_SECONDS,
    threads: int = 1,
    rounds: int = 20,
    timer: Timer = time_in_turns,
) -> LatencyTable:
    """Time the parts of an encoder on one utterance of noise, and fit. The encoder is left in eval mode.

    Raises UserError for an utterance that is too short, and for no threads or rounds at all.
    """
    check_number("seconds", seconds)
    frames = int(seconds * FRAMES_PER_SECOND)
    _check(encoder, seconds, frames, threads, rounds)
    encoder.eval()
    features = torch.randn(1, frames, encoder.input_size, generator=torch.Generator().manual_seed(0))
    shapes = distinct_shapes(encoder)
    checked = checked_subnets(encoder.component_table())
    with torch_threads(threads):
        times = timer(_calls(encoder, features, shapes, checked), rounds)
    per_second = {probe: value / seconds for probe, value in times.items()}
    machine = {"cpu": cpu_model(), "threads": threads, "torch": torch.__version__, "date": date.today().isoformat()}
    return _fit(encoder, shapes, checked, per_second, machine, {"utterance_seconds": seconds, "rounds": rounds})


def distinct_shapes(encoder: SupernetEncoder) -> list[Shape]:
    """Every distinct shape of module, in the order of their first layers."""
    layers: dict[tuple[Any, ...], list[int]] = {}
    for layer, block in enumerate(encoder.encoders):
        for name, _, module in block.elastic_modules():  # type: ignore[operator]
            shape = tuple(tuple(parameter.shape) for parameter in module.parameters())
            layers.setdefault((name, module.components, shape), []).append(layer)
    return [Shape(name, tuple(found), components) for (name, components, _), found in layers.items()]


def checked_subnets(table: ComponentTable) -> list[Subnet]:
    """The full set and random ones, always the same, whose whole latency is held against the sum of their parts."""
    subnets, chance, keys = [table.full()], random.Random(0), sorted(table.by_key)
    for share in CHECKED_SHARES:
        kept = frozenset(key for key in keys if chance.random() < share) or frozenset(keys[:1])
        subnets.append(Subnet(f"random_{share:g}", kept))
    return subnets


def fit_line(points: Mapping[int, float]) -> Line:
    """The least-squares line through {kept: seconds} with neither a negative offset nor a negative slope.

    With a single point all of it goes to the components.
    """
    kept, seconds = np.array(list(points), dtype=float), np.array(list(points.values()))
    through_zero = Line(0.0, max(0.0, float(kept @ seconds / (kept @ kept))))
    if len(points) == 1:
        return through_zero
    slope, offset = np.polyfit(kept, seconds, 1)
    if slope >= 0 and offset >= 0:
        return Line(float(offset), float(slope))
    flat = Line(max(0.0, float(seconds.mean())), 0.0)
    return min(through_zero, flat, key=lambda line: _squares(line, kept, seconds))  # the best lies on an edge


def _squares(line: Line, kept: Any, seconds: Any) -> float:
    return float(np.square(line.fixed + line.per_component * kept - seconds).sum())


def _calls(
    encoder: SupernetEncoder, features: Tensor, shapes: Sequence[Shape], checked: Sequence[Subnet]
) -> dict[Probe, Callable[[], object]]:
    """What is timed, as calls. Blocks are those of extracted models: a slice's weights may lie apart in memory."""
    lengths = torch.tensor([features.size(1)])
    front = encoder.front(features, lengths)
    calls: dict[Probe, Callable[[], object]] = {
        Probe("front"): lambda: encoder.front(features, lengths),
        Probe("finalise"): lambda: encoder.finalise(front.hidden),
    }
    norm = _final_norm(encoder)
    if norm is not None:
        calls[Probe("norm")] = lambda: norm(front.hidden)
    for shape in shapes:
        for count in shape.counts():
            (block,) = encoder.extract(shape.kept(count)).encoders
            calls[Probe("block", shape.kept(count))] = lambda block=block: block(  # type: ignore[misc]
                front.hidden, front.positions, front.mask, LayerChoice()
            )
    for subnet in checked:
        small = encoder.extract(subnet)
        calls[Probe("whole", subnet)] = lambda small=small: small(features, lengths)  # type: ignore[misc]
    return calls


def _final_norm(encoder: SupernetEncoder) -> Optional[nn.Module]:
    """The norm that blocks end with, if they do; it has the same width in all of them."""
    norms = (getattr(block, "norm_final", None) for block in encoder.encoders)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def _fit(
    encoder: SupernetEncoder,
    shapes: Sequence[Shape],
    checked: Sequence[Subnet],
    times: Mapping[Probe, float],
    machine: Mapping[str, Any],
    report: Mapping[str, Any],
) -> LatencyTable:
    """From medians, in seconds per second of speech, to the table."""
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
    fitted = LatencyTable(fingerprint(encoder, plain), modules, layers, rest, machine, {})
    table = fitted.apply(plain)
    errors = {}
    for subnet in checked:
        predicted, found = table.cost(subnet).latency, times[Probe("whole", subnet)]
        errors[subnet.name] = {"predicted": predicted, "measured": found, "error": predicted / found - 1}
    largest = max((entry["error"] for entry in errors.values()), key=abs)
    told = {**report, "points": points, "fit": errors, "largest_error": largest}
    return LatencyTable(fitted.fingerprint, modules, layers, rest, machine, told)


def summary(table: LatencyTable) -> str:
    """One line on a measurement."""
    full, machine = table.report["fit"][FULL], table.machine
    return (
        f"full encoder {1000 * full['measured']:.2f} ms per second of speech on {machine['cpu']},"
        f" {machine['threads']} thread(s); predicted {1000 * full['predicted']:.2f} ms;"
        f" largest error of the fit {table.report['largest_error']:+.1%}"
    )


def _check(encoder: SupernetEncoder, seconds: float, frames: int, threads: int, rounds: int) -> None:
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise UserError(f"{name}: {value} is not possible; allowed: 1 or more")
    if frames < 1 or encoder.subsampled(frames) < 1:
        raise UserError(f"seconds: {seconds} is too short an utterance for this encoder's subsampling; give more")
