"""sherpa-onnx in a process of its own: a model that it cannot load ends that process, not ours.

``python -m espnet_todm.deploy.runtime.sherpa_subprocess FOLDER`` is the other process; it does what the folder's
order.json says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.deploy.onnx.folder import TOKENS, find_parts
from espnet_todm.deploy.runtime.sherpa_check import STREAMING_CTC, ZIPFORMER_CTC, Checked, check_for_sherpa
from espnet_todm.deploy.runtime.streaming import with_tail
from espnet_todm.errors import UserError, last_line
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.child import child_environment, python_module
from espnet_todm.util.files import PathLike
from espnet_todm.util.optional import needed

_LIMIT = 3600.0  # seconds
PIECE = SAMPLING_RATE // 10  # samples that an online recognizer gets at a time
Order = dict[str, Any]


def transcribe_in_subprocess(
    folder: PathLike, precision: str, threads: int, waves: Sequence[np.ndarray], seconds: float = _LIMIT
) -> list[str]:
    """Texts of waves (N,), with single spaces between words. An online recognizer gets each with the model's tail.

    Raises UserError, with sherpa-onnx's last words, when its process ends early or takes longer than ``seconds``.
    """
    order = make_order(folder, precision, threads, check_for_sherpa(folder, precision))
    return [" ".join(text.split()) for text in _hear(order, waves, seconds)]


def make_order(folder: PathLike, precision: str, threads: int, kind: Checked) -> Order:
    """Arguments of :class:`Recognizer`, as JSON can hold them. Raises UserError when a file is not there."""
    parts = {part: str(path) for part, path in find_parts(folder, precision)[1].items()}
    return {**asdict(kind), "parts": parts, "tokens": str(Path(folder) / TOKENS), "threads": threads}


class Recognizer:
    """sherpa-onnx's recognizer (``stock``) of a folder that has been checked, since a fault ends this process.

    tail_seconds: the model's, 0 for whole utterances.
    """

    def __init__(
        self, model_type: str, mel_bins: int, tail_seconds: float, parts: dict[str, str], tokens: str, threads: int
    ) -> None:
        sherpa_onnx = needed("sherpa_onnx")
        self.online, self.tail_seconds = model_type == STREAMING_CTC, tail_seconds
        options: dict[str, Any] = {"tokens": tokens, "num_threads": threads, "feature_dim": mel_bins}
        if self.online:
            self.stock = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(**parts, **options)
        elif model_type == ZIPFORMER_CTC:
            self.stock = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(**parts, **options)
        else:
            self.stock = sherpa_onnx.OfflineRecognizer.from_transducer(**parts, **options, model_type=model_type)

    def __call__(self, samples: np.ndarray) -> Any:
        """What it makes of samples (N,): sherpa-onnx's result, with ``text`` and ``tokens``.

        An online recognizer gets them in pieces, as from a microphone, and the tail behind: nothing that
        docs/streaming.md does not tell its user to do.
        """
        stream = self.stock.create_stream()
        if not self.online:
            stream.accept_waveform(SAMPLING_RATE, samples)
            self.stock.decode_stream(stream)
            return stream.result
        given = with_tail(samples, self.tail_seconds)
        for piece in np.array_split(given, max(len(given) // PIECE, 1)):
            stream.accept_waveform(SAMPLING_RATE, piece)
            self._decode(stream)
        stream.input_finished()
        self._decode(stream)
        return self.stock.get_result_all(stream)

    def _decode(self, stream: Any) -> None:
        while self.stock.is_ready(stream):
            self.stock.decode_stream(stream)


def _hear(order: Order, waves: Sequence[np.ndarray], seconds: float) -> list[str]:
    """The text of each wave."""
    needed("sherpa_onnx")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.savez(place / "waves.npz", *waves)
        (place / "order.json").write_text(json.dumps(order), encoding="utf-8")
        ended = _run(place, seconds)
        if not (place / "answer.json").is_file():
            raise UserError(f"{' '.join(order['parts'].values())}: sherpa-onnx {ended}")
        return list(json.loads((place / "answer.json").read_text(encoding="utf-8")))


def _run(place: Path, seconds: float) -> str:
    """How the other process ended, in words for a sentence that begins with its name."""
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
    """The other process: texts of waves.npz as order.json says, into answer.json."""
    order = json.loads((place / "order.json").read_text(encoding="utf-8"))
    recognizer = Recognizer(**order)
    with np.load(place / "waves.npz") as waves:
        answer = [str(recognizer(waves[name]).text) for name in waves.files]
    (place / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
