"""The parity gate on very short speech: runtimes must not crash, and must give the same transcripts."""

from __future__ import annotations

import numpy as np

from espnet_todm.deploy.parity.steps import FP32, Gate, sherpa_written
from espnet_todm.deploy.runtime.base import StepRuntime
from espnet_todm.deploy.runtime.sherpa_subprocess import transcribe_in_subprocess
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike

SECONDS = (0.01, 0.05, 0.1)  # an encoder with subsampling by 4 needs 0.07 s for one frame


def compare_short(
    gate: Gate, exported: PathLike, against: str, runtime: StepRuntime, samples: np.ndarray, threads: int
) -> None:
    """Compare transcripts of sherpa-onnx and the runtime ``against`` on the first SECONDS of an utterance. Some are too
    short for one encoder frame or one chunk."""
    begins = [samples[: round(seconds * SAMPLING_RATE)] for seconds in SECONDS]
    try:
        texts = transcribe_in_subprocess(exported, FP32, threads, begins)
    except UserError as error:
        raise UserError(f"speech of {', '.join(f'{s:g}' for s in SECONDS)} s: {error}") from None
    names = [f"{gate.names[0]}, first {seconds:g} s" for seconds in SECONDS]
    ours, theirs = sherpa_written(texts), sherpa_written(map(runtime.transcribe, begins))
    gate.texts("sherpa-onnx fp32, short", against, ours, theirs, True, names)
