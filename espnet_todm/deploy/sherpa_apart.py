"""sherpa-onnx in a process of its own: a model that it cannot load ends that process, not ours.

``python -m espnet_todm.deploy.sherpa_apart FOLDER`` is the other process; it does what order.json in that folder says.
"""

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
from espnet_todm.deploy.onnx_folder import CTC, TOKENS, OnnxFolder, read_onnx_folder
from espnet_todm.deploy.sherpa_check import check_for_sherpa
from espnet_todm.deploy.sherpa_features import read_spelled, write_speller
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike

INSTALL = "pip install 'espnet_todm[deploy]'"
_LIMIT = 3600.0  # seconds


def transcribe_apart(
    folder: PathLike, precision: str, threads: int, waves: Sequence[np.ndarray], seconds: float = _LIMIT
) -> list[str]:
    """Texts of waves (N,), with single spaces between words.

    Raises UserError, with sherpa-onnx's last words, when its process ends early or takes longer than ``seconds``.
    """
    mel_bins = check_for_sherpa(folder, precision)
    return [
        _text(tokens_and_text[1]) for tokens_and_text in _hear(folder, precision, threads, mel_bins, waves, seconds)
    ]


def features_apart(waves: Sequence[np.ndarray], mel_bins: int = 80, seconds: float = _LIMIT) -> list[np.ndarray]:
    """The features (T, mel_bins) that sherpa-onnx makes of waves (N,), to within 1e-5. Raises UserError as above."""
    with tempfile.TemporaryDirectory() as place:
        write_speller(Path(place), mel_bins)
        heard = _hear(place, "fp32", 1, mel_bins, waves, seconds)
    return [read_spelled(tokens, mel_bins) for tokens, _ in heard]


def recognizer(folder: OnnxFolder, mel_bins: int = 80, threads: int = 1) -> Any:
    """The recognizer; to be called on a folder that has been checked, since a fault ends this process."""
    try:
        import sherpa_onnx
    except ImportError:
        raise UserError(f"sherpa-onnx is not installed; {INSTALL}") from None
    files = {part: str(path) for part, path in folder.parts.items()}
    options: dict[str, Any] = {"num_threads": threads, "feature_dim": mel_bins, "tokens": str(folder.path / TOKENS)}
    if folder.kind == CTC:
        return sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(**files, **options)
    return sherpa_onnx.OfflineRecognizer.from_transducer(**files, **options)


def decode(heard: Any, samples: np.ndarray) -> Any:
    """What a recognizer makes of samples (N,): sherpa-onnx's result, with ``text`` and ``tokens``."""
    stream = heard.create_stream()
    stream.accept_waveform(SAMPLING_RATE, samples)
    heard.decode_stream(stream)
    return stream.result


def _text(text: str) -> str:
    return " ".join(text.split())


def _hear(
    folder: PathLike, precision: str, threads: int, mel_bins: int, waves: Sequence[np.ndarray], seconds: float
) -> list[tuple[list[str], str]]:
    """Tokens and text of each wave."""
    if not _has_sherpa():
        raise UserError(f"sherpa-onnx is not installed; {INSTALL}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.savez(place / "waves.npz", *waves)
        order = {"folder": str(folder), "precision": precision, "threads": threads, "mel_bins": mel_bins}
        (place / "order.json").write_text(json.dumps(order), encoding="utf-8")
        ended = _run(place, seconds)
        if not (place / "answer.json").is_file():
            raise UserError(f"{folder}: sherpa-onnx {ended}; precision: {precision}")
        return [(tokens, text) for tokens, text in json.loads((place / "answer.json").read_text(encoding="utf-8"))]


def _has_sherpa() -> bool:
    import importlib.util

    return importlib.util.find_spec("sherpa_onnx") is not None


def _run(place: Path, seconds: float) -> str:
    """How the other process ended, in words for a sentence that begins with its name."""
    root = str(Path(espnet_todm.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "espnet_todm.deploy.sherpa_apart", str(place)]
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} s"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    last = f" ({lines[-1][:300]})" if lines else ""
    return f"ended its process with status {done.returncode}{last}"


def _main(place: Path) -> None:
    """The other process: tokens and texts of waves.npz as order.json says, into answer.json."""
    order = json.loads((place / "order.json").read_text(encoding="utf-8"))
    heard = recognizer(read_onnx_folder(order["folder"], order["precision"]), order["mel_bins"], order["threads"])
    with np.load(place / "waves.npz") as waves:
        results = [decode(heard, waves[name]) for name in waves.files]
    answer = [(list(result.tokens), str(result.text)) for result in results]
    (place / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
