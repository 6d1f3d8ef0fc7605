"""sherpa-onnx in a subprocess: a model that it cannot load ends the subprocess, not this process.

The subprocess is ``python -m espnet_todm.deploy.runtime.sherpa_subprocess FOLDER``. It reads order.json and waves.npz from
the folder and writes answer.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.deploy.forms.base import Form
from espnet_todm.deploy.forms.registry import named, open_exported
from espnet_todm.deploy.onnx.folder import TOKENS
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.deploy.runtime.recognizer import Recognizer
from espnet_todm.errors import UserError, last_line
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.child import child_environment, python_module
from espnet_todm.util.files import PathLike
from espnet_todm.util.optional import needed

_LIMIT = 3600.0  # seconds
Order = dict[str, Any]


def transcribe_in_subprocess(
    folder: PathLike, precision: str, threads: int, waves: Sequence[np.ndarray], seconds: float = _LIMIT
) -> list[str]:
    """Transcripts of waves (N,), with single spaces between words. An online recognizer gets the model's tail after each.

    Raises UserError when the subprocess crashes (with its last line of output) or takes longer than ``seconds``.
    """
    return transcribe_order(make_order(folder, precision, threads), waves, seconds)


def make_order(folder: PathLike, precision: str, threads: int) -> Order:
    """The argument of :func:`make_recognizer` for a folder, a dictionary that JSON can hold.

    Raises UserError for faults without a clear message from sherpa-onnx: a missing file, an invalid tokens.txt, a number of
    tokens that is not that of the model's outputs, or another blank.
    """
    return order_for(*open_exported(folder, precision), folder, threads)


def order_for(form: Form, model: OnnxRuntime, folder: PathLike, threads: int, **more: Any) -> Order:
    """As :func:`make_order`, for the format and the model of an opened folder. more: arguments for sherpa-onnx."""
    files = {part: str(graph.path) for part, graph in model.graphs.items()}
    tokens = str(Path(folder) / TOKENS)
    arguments = {**files, "tokens": tokens, "num_threads": threads, "feature_dim": model.mel_bins, **more}
    return {"form": form.name, "files": list(files.values()), "arguments": arguments, "details": model.details}


def make_recognizer(order: Order) -> Recognizer:
    """Create the recognizer. sherpa-onnx may end this process when the model has a fault."""
    return named(order["form"]).recognizer(order["arguments"], **order["details"])


def tried_recognizer(order: Order) -> Recognizer:
    """Create the recognizer after it has run in a subprocess. Raises UserError as :func:`transcribe_order`."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=SAMPLING_RATE).astype(np.float32)
    transcribe_order(order, [noise])
    return make_recognizer(order)


def transcribe_order(order: Order, waves: Sequence[np.ndarray], seconds: float = _LIMIT) -> list[str]:
    """As :func:`transcribe_in_subprocess`, for an order of :func:`make_order`."""
    needed("sherpa_onnx")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.savez(place / "waves.npz", *waves)
        (place / "order.json").write_text(json.dumps(order), encoding="utf-8")
        ended = _run(place, seconds)
        if not (place / "answer.json").is_file():
            raise UserError(f"{' '.join(order['files'])}: sherpa-onnx {ended}")
        return list(json.loads((place / "answer.json").read_text(encoding="utf-8")))


def _run(place: Path, seconds: float) -> str:
    """Run the subprocess, and return how it ended as the predicate of a sentence."""
    command = python_module("espnet_todm.deploy.runtime.sherpa_subprocess", str(place))
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} s"
    last = last_line(done.stderr + done.stdout)
    return f"ended its process with status {done.returncode}" + (f" ({last})" if last else "")


def _main(place: Path) -> None:
    """The subprocess: transcribe waves.npz as order.json specifies, and write answer.json."""
    order = json.loads((place / "order.json").read_text(encoding="utf-8"))
    recognizer = make_recognizer(order)
    with np.load(place / "waves.npz") as waves:
        answer = [recognizer(waves[name]) for name in waves.files]
    (place / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
