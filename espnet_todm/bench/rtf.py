"""Real-time factor of extracted models on this machine's CPU, measured in alternation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import seconds_of
from espnet_todm.util.processor import cpu_model
from espnet_todm.util.threads import torch_threads


def measure_rtf(
    decoders: Mapping[str, Decoder], utterances: Sequence[Tensor], threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Measure each model's real-time factor (encoder and search), one utterance at a time.

    All models decode an utterance before the next one, so that other load on the machine affects them equally. Each model
    first decodes one utterance without timing. Feature extraction is not included, since it is the same for all sizes.

    Args:
        utterances: model inputs (T, F) or (samples,).
    """
    factors: dict[str, list[float]] = {name: [] for name in decoders}
    with torch_threads(threads):
        for decoder in decoders.values():
            decoder([utterances[0]])
        for utterance in tqdm(utterances, desc="real-time factor", disable=None):
            for name, decoder in decoders.items():
                start = time.perf_counter()
                decoder([utterance])
                factors[name].append((time.perf_counter() - start) / seconds_of(utterance))
    return {
        name: {
            "rtf_median": float(np.median(values)),
            "rtf_p95": float(np.percentile(values, 95)),
            "threads": threads,
            "cpu": cpu_model(),
            "utterances": len(values),
        }
        for name, values in factors.items()
    }
