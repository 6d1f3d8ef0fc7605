"""sherpa-onnx itself as a runtime. What it cannot load ends a whole process, so it is looked at first and tried apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import espnet_todm
from espnet_todm.deploy.fbank import SAMPLING_RATE
from espnet_todm.deploy.onnx_folder import CTC, OnnxFolder, read_onnx_folder
from espnet_todm.deploy.runtime import SHERPA, Runtime
from espnet_todm.deploy.sherpa_check import check_for_sherpa
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike

INSTALL = "pip install 'espnet_todm[deploy]'"
_SECOND = np.random.default_rng(0).normal(scale=1e-3, size=SAMPLING_RATE).astype(np.float32)


class SherpaRuntime(Runtime):
    """``sherpa_onnx.OfflineRecognizer`` on an exported folder: ``from_zipformer_ctc`` or ``from_transducer``.

    Args:
        apart: first try the folder in a process of its own.

    Raises:
        UserError: the folder has a fault that sherpa-onnx does not survive, or it is not installed.
    """

    kind = SHERPA

    def __init__(self, folder: PathLike, precision: str = "fp32", threads: int = 1, apart: bool = True) -> None:
        self.mel_bins = check_for_sherpa(folder, precision)
        if apart:
            transcribe_apart(folder, precision, threads, [_SECOND])
        self._recognizer = recognizer(read_onnx_folder(folder, precision), self.mel_bins, threads)

    def transcribe(self, samples: np.ndarray) -> str:
        return " ".join(str(_decode(self._recognizer, samples).text).split())


def recognizer(folder: OnnxFolder, mel_bins: int = 80, threads: int = 1) -> Any:
    """The recognizer; to be called on a folder that has been checked, since a fault ends this process."""
    try:
        import sherpa_onnx
    except ImportError:
        raise UserError(f"sherpa-onnx is not installed; {INSTALL}") from None
    files = {part: str(path) for part, path in folder.parts.items()}
    options = {"tokens": str(folder.path / "tokens.txt"), "num_threads": threads, "feature_dim": mel_bins}
    if folder.kind == CTC:
        return sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(**files, **options)
    return sherpa_onnx.OfflineRecognizer.from_transducer(**files, **options)


def transcribe_apart(
    folder: PathLike, precision: str, threads: int, waves: Sequence[np.ndarray], seconds: float = 3600
) -> list[str]:
    """Texts of waves (samples,) by sherpa-onnx in a process of its own, which may end without harm.

    Raises UserError, with sherpa-onnx's last words, when it does, or when it takes longer than ``seconds``.
    """
    mel_bins = check_for_sherpa(folder, precision)
    with tempfile.TemporaryDirectory() as place:
        order = Path(place) / "order.json"
        answer = Path(place) / "answer.json"
        np.savez(Path(place) / "waves.npz", *waves)
        wanted = {"folder": str(folder), "precision": precision, "threads": threads, "mel_bins": mel_bins}
        order.write_text(json.dumps(wanted), encoding="utf-8")
        done = _run_apart(Path(place), seconds)
        if not answer.is_file():
            raise UserError(f"{folder}: sherpa-onnx {done} on {precision}")
        return list(json.loads(answer.read_text(encoding="utf-8")))


def main(place: Path) -> None:
    """The other process: texts of waves.npz as order.json says, into answer.json."""
    order = json.loads((place / "order.json").read_text(encoding="utf-8"))
    heard = recognizer(read_onnx_folder(order["folder"], order["precision"]), order["mel_bins"], order["threads"])
    with np.load(place / "waves.npz") as waves:
        texts = [" ".join(str(_decode(heard, waves[name]).text).split()) for name in waves.files]
    (place / "answer.json").write_text(json.dumps(texts), encoding="utf-8")


def _decode(heard: Any, samples: np.ndarray) -> Any:
    stream = heard.create_stream()
    stream.accept_waveform(SAMPLING_RATE, samples)
    heard.decode_stream(stream)
    return stream.result


def _run_apart(place: Path, seconds: float) -> str:
    """How the other process ended, in words for a sentence that begins with its name."""
    root = str(Path(espnet_todm.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "espnet_todm.deploy.runtime_sherpa", str(place)]
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} s"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    last = f" ({lines[-1][:300]})" if lines else ""
    return f"ended its process with status {done.returncode}{last}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
