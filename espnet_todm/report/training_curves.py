"""How the sizes learned: losses and error rates over a training, from the event files that ESPnet writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from espnet_todm.report.selection import NAMES
from espnet_todm.util.files import PathLike
from espnet_todm.util.markdown import Table
from espnet_todm.util.palette import RULE, STYLES

PARTS = ("train", "valid")

_NAMES = {
    "loss": "loss",
    "cer": "CER",
    "wer": "WER",
    "acc": "accuracy of the next token",
    "kd": "distillation loss",
    "agreement": "gradient agreement",
    "consistency": "consistency of views",
    "att": "attention",
    "ctc": "CTC",
    "transducer": "transducer",
}
_RATES = ("cer", "wer")
"""Measures of these kinds are shares of reference units and drawn in percent."""
AGREEMENT = "agreement"
"""Measures of this kind are cosines of gradients, one for each part of the model."""


class Curve(NamedTuple):
    """One measure of one size: ``train`` and ``valid`` are (epoch, value) pairs, epochs being fractions while in one.

    place: the size's among all, by which it has the same colour in all pictures.
    """

    size: str
    place: int
    train: list[tuple[float, float]]
    valid: list[tuple[float, float]]


def read_curves(experiment: PathLike, sizes: Sequence[str]) -> dict[str, list[Curve]]:
    """Measure (such as ``cer_ctc``, ``loss``, ``kd``) -> its curves, in the order of ``sizes``.

    From ``tensorboard/{train,valid}`` below the experiment; empty where there is none. Of an update that a resumed run
    made again, the last value counts. Without epochs in the files the numbers of updates stand in their place.
    """
    events = {part: _events(Path(experiment) / "tensorboard" / part) for part in PARTS}
    ends = {0: 0.0, **_last(events["train"].get("iter_epoch", {}))}
    scalars = {
        "train": {tag: _within_epochs(values, sorted(ends)[1:]) for tag, values in events["train"].items()},
        "valid": {tag: _last(values) for tag, values in events["valid"].items()},
    }
    found: dict[str, dict[str, Curve]] = {}
    for part, by_tag in scalars.items():
        for tag, values in by_tag.items():
            size = max((size for size in sizes if tag.endswith(f"_{size}")), key=len, default=None)
            if size is None or not values:
                continue
            curves = found.setdefault(tag[: -len(size) - 1], {})
            curve = curves.setdefault(size, Curve(size, sizes.index(size), [], []))
            getattr(curve, part).extend(_by_epoch(values, ends))
    order = sorted(found, key=lambda measure: (_kind(measure) not in _RATES, measure == "kd", measure))
    return {measure: [found[measure][size] for size in sizes if size in found[measure]] for measure in order}


def _events(folder: Path) -> dict[str, dict[int, list[float]]]:
    """tag -> update -> its values in the order of writing, of all event files in a folder; only finite values."""
    if not any(folder.glob("events.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, dict[int, list[float]]] = {}
    for tag in events.Tags()["scalars"]:
        steps = found.setdefault(tag, {})
        for event in events.Scalars(tag):
            if math.isfinite(event.value):
                steps.setdefault(event.step, []).append(event.value)
    return found


def _last(values: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {step: of_step[-1] for step, of_step in values.items()}


def _within_epochs(values: Mapping[int, Sequence[float]], ends: Sequence[int]) -> dict[int, float]:
    """Update -> value without the means over epochs, which ESPnet writes under the same tag at each epoch's last update.

    Beside values of a few updates each a mean would be a spike. It stays in an epoch that has nothing else.
    """
    kept = _last(values)
    for start, end in zip([0, *ends], ends):
        others = values.get(end, [])[:-1]
        if others:
            kept[end] = others[-1]
        elif end in kept and any(start < step < end for step in values):
            del kept[end]
    return kept


def _by_epoch(values: Mapping[int, float], ends: Mapping[int, float]) -> list[tuple[float, float]]:
    """(epoch, value), with the epoch read between the updates at which epochs end."""
    steps = sorted(values)
    places = np.interp(steps, sorted(ends), [ends[step] for step in sorted(ends)]) if len(ends) > 1 else steps
    return [(float(place), values[step]) for place, step in zip(places, steps)]


def title(measure: str) -> str:
    """``cer_ctc`` -> ``CER (CTC)``."""
    kind, _, rest = measure.partition("_")
    return _NAMES.get(kind, kind) + (f" ({_NAMES.get(rest, rest)})" if rest else "")


def _kind(measure: str) -> str:
    return measure.partition("_")[0]


def split_agreement(
    curves: Mapping[str, Sequence[Curve]],
) -> tuple[dict[str, Sequence[Curve]], dict[str, Sequence[Curve]]]:
    """The curves to draw, and those of the agreement by part; that of all parts together is in both."""
    parts = {measure.partition("_")[2]: of for measure, of in curves.items() if _kind(measure) == AGREEMENT}
    drawn = {measure: of for measure, of in curves.items() if measure not in {f"{AGREEMENT}_{p}" for p in parts}}
    return {**drawn, **({f"{AGREEMENT}_all": parts["all"]} if "all" in parts else {})}, parts


def agreement_table(parts: Mapping[str, Sequence[Curve]]) -> Table:
    """One row for each part. Columns of each size: the mean cosine over the first and the last quarter of the training, and
    the percentage of the written values that are below 0."""
    sizes = [size for _, size in sorted({(curve.place, curve.size) for curves in parts.values() for curve in curves})]
    end = max(epoch for curves in parts.values() for curve in curves for epoch, _ in curve.train)
    rows = []
    depth = ["all", "front", "first_third", "middle_third", "last_third", "output"]
    for part in [*(part for part in depth if part in parts), *(part for part in parts if part not in depth)]:
        row = [NAMES.get(part, part.replace("_", " "))]
        of_size = {curve.size: curve.train for curve in parts[part]}
        for size in sizes:
            pairs = of_size.get(size, [])
            row.append(_mean(value for epoch, value in pairs if epoch <= end / 4))
            row.append(_mean(value for epoch, value in pairs if epoch > end * 3 / 4))
            row.append(_mean((100.0 * (value < 0) for _, value in pairs), 0))
        rows.append(row)
    columns = ("first quarter", "last quarter", "below 0 (%)")
    return Table(["part", *(f"{size}: {column}" for size in sizes for column in columns)], rows)


def _mean(values: Iterable[float], digits: int = 2) -> str:
    """The mean with so many digits, nothing without values."""
    listed = list(values)
    return f"{sum(listed) / len(listed):.{digits}f}" if listed else ""


def draw_curves(measure: str, curves: Sequence[Curve], inches: tuple[float, float]) -> Figure:
    """Training as lines, validation as marks joined by broken lines, a size to a colour.

    The axis is logarithmic for losses that are all positive and fall tenfold or more.
    """
    factor = 100.0 if _kind(measure) in _RATES else 1.0
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        color, mark, _ = STYLES[curve.place % len(STYLES)]
        for pairs, style in ((curve.train, "-"), (curve.valid, f"{mark}--")):
            if pairs:
                label = curve.size if pairs is curve.valid or not curve.valid else None
                points = [(epoch, factor * value) for epoch, value in pairs]
                axes.plot(*zip(*points), style, color=color, label=label, linewidth=1.2, markersize=5)
    values = [factor * value for curve in curves for _, value in [*curve.train, *curve.valid]]
    if min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(min(0.0, *values), None)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set(xlabel="epoch", ylabel=title(measure) + (" in %" if factor > 1 else ""))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor=RULE)
    return figure
