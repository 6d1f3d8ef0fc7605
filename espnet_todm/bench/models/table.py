"""Evaluate measured times: figures of each size, its measured and ideal speed-up over the largest size, and a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from espnet_todm.bench.models.measure import Target, Times
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.memory import MIB
from espnet_todm.util.optional import package_version
from espnet_todm.util.processor import cpu_model

FORMAT = "espnet_todm.device/1"
SAMPLES = 2000  # bootstrap resamples
HEADER = [
    *("runtime", "precision", "threads", "size", "file (MiB)", "peak memory (MiB)", "above runtime (MiB)"),
    *("start (ms)", "RTF", "CPU s per s", "p50 (ms)", "p95 (ms)", "speed-up [95%]", "ideal (FLOPs)", "of ideal"),
    "of ideal without features",
]
CHUNK = {  # columns of streaming models
    "chunk_seconds": "chunk (s)",
    "chunk_p50_ms": "chunk p50 (ms)",
    "chunk_p95_ms": "chunk p95 (ms)",
    "first_word_p50_ms": "first word p50 (ms)",
    "first_word_p95_ms": "first word p95 (ms)",
    "end_p50_ms": "end p50 (ms)",
    "end_p95_ms": "end p95 (ms)",
}


def results(times: Mapping[Target, Times], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Figures of every target. ``seconds`` are the lengths of the utterances.

    ``rtf`` is the median over rounds. Latencies are percentiles over utterances of the median over rounds. ``clock`` is
    the clock of the speed-ups: CPU time for one thread, which other load on the machine hardly changes, otherwise the wall
    clock. ``ideal`` is the ratio of FLOPs, which do not include feature extraction.

    ``startup_ms`` is the time from the beginning of loading to the result of the first utterance.

    For streaming models the seconds of speech are those of all chunks, and there are the figures of
    :class:`~espnet_todm.bench.models.chunks.Chunks`.
    """
    largest: dict[tuple[str, str, int], Target] = {}
    for target in times:
        best = largest.setdefault(target.setting, target)
        if target.flops_per_second > best.flops_per_second:
            largest[target.setting] = target
    return [
        {**_figures(target, measured, seconds), **_against(target, largest[target.setting], times)}
        for target, measured in times.items()
    ]


def _figures(target: Target, measured: Times, lengths: Sequence[float]) -> dict[str, Any]:
    elapsed = measured.elapsed.sum(2)  # (rounds, utterances)
    seconds = sum(lengths) if measured.chunks is None else measured.chunks.speech_seconds
    streamed = {} if measured.chunks is None else measured.chunks.figures(lengths)
    latency = 1000.0 * np.median(elapsed, axis=0)
    return {
        "size": target.size,
        "runtime": target.runtime,
        "precision": target.precision,
        "threads": target.threads,
        "file_mib": sum(path.stat().st_size for path in target.files) / MIB,
        "peak_mib": measured.peak_mib,
        "above_runtime_mib": measured.peak_mib - measured.runtime_mib,
        "startup_ms": 1000.0 * measured.startup,
        "rtf": float(np.median(elapsed.sum(1))) / seconds,
        "cpu_seconds_per_second": float(np.median(measured.cpu.sum((1, 2)))) / seconds,
        "features_cpu_seconds_per_second": float(np.median(measured.cpu[..., 0].sum(1))) / seconds,
        "latency_p50_ms": float(np.percentile(latency, 50)),
        "latency_p95_ms": float(np.percentile(latency, 95)),
        "flops_per_second": target.flops_per_second,
        **streamed,
    }


def _against(target: Target, largest: Target, times: Mapping[Target, Times]) -> dict[str, Any]:
    """Speed-up over the largest size, with and without feature extraction."""
    clock = "cpu" if target.threads == 1 else "elapsed"
    ideal = largest.flops_per_second / target.flops_per_second
    own, other = (getattr(times[each], clock) for each in (target, largest))
    whole, low, high = paired_ratio(other.sum((1, 2)), own.sum((1, 2)))
    alone = paired_ratio(other[..., 1].sum(1), own[..., 1].sum(1))[0]
    return {
        "against": largest.size,
        "clock": clock,
        "speedup": whole,
        "speedup_interval": [low, high],
        "speedup_without_features": alone,
        "ideal": ideal,
        "of_ideal": whole / ideal,
        "of_ideal_without_features": alone / ideal,
    }


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median over rounds (R,) of the ratio within a round, and the 95% percentile bootstrap interval of that median."""
    ratios = numerator / denominator
    middle = float(np.median(ratios))
    if len(ratios) < 2:
        return middle, middle, middle
    drawn = bootstrap((ratios,), np.median, n_resamples=SAMPLES, method="percentile", random_state=seed)
    return middle, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def describe_machine(load_before: Sequence[float]) -> dict[str, Any]:
    """Describe the machine. ``load_before`` and ``load_after`` are its load averages over 1, 5 and 15 minutes."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": list(load_before),
        "load_after": load_average(),
        **{package: package_version(package) for package in ("onnxruntime", "sherpa-onnx", "torch")},
    }


def load_average() -> list[float]:
    """Load averages over 1, 5 and 15 minutes, or an empty list if the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of :func:`results`, one row per target."""
    rows = []
    streamed = [key for key in CHUNK if any(key in entry for entry in measured)]
    for entry in measured:
        low, high = entry["speedup_interval"]
        rows.append(
            [
                *(str(entry[key]) for key in ("runtime", "precision", "threads", "size")),
                *(f"{entry[key]:.1f}" for key in ("file_mib", "peak_mib", "above_runtime_mib", "startup_ms")),
                *(f"{entry[key]:.4f}" for key in ("rtf", "cpu_seconds_per_second")),
                *(f"{entry[key]:.1f}" for key in ("latency_p50_ms", "latency_p95_ms")),
                f"{entry['speedup']:.2f} [{low:.2f}, {high:.2f}]",
                *(f"{entry[key]:.2f}" for key in ("ideal", "of_ideal", "of_ideal_without_features")),
                *(f"{entry[key]:.2f}" if key in entry else "" for key in streamed),
            ]
        )
    return markdown_table([*HEADER, *(CHUNK[key] for key in streamed)], rows)
