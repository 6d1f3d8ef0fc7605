"""Words as they come: a streaming export in sherpa-onnx's online recognizer, on one stream of speech of any length.

Speech comes from a file, from standard input or from a microphone, as blocks of samples (N,) float32 in [-1, 1] at 16 kHz.
"""

from __future__ import annotations

import queue
import sys
import wave
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from espnet_todm.deploy.forms.registry import open_exported
from espnet_todm.deploy.forms.streaming import ChunkedOnnx
from espnet_todm.deploy.runtime.sherpa_subprocess import order_for, tried_recognizer
from espnet_todm.errors import UserError, one_line
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike
from espnet_todm.util.optional import needed

BLOCK = SAMPLING_RATE // 10  # samples that are read at a time
STOCK_SUBSAMPLING = 4  # sherpa-onnx's time stamps take an encoder frame for 4 feature frames, whatever the model's is


class Word(NamedTuple):
    """A word and the second in which its first token was found, from the beginning of the speech."""

    text: str
    second: float


@dataclass(frozen=True)
class Heard:
    """The words since the last pause. ``final``: a pause, or the end, follows; else they may still grow or change."""

    words: tuple[Word, ...]
    final: bool

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class Listener:
    """A streaming export in sherpa-onnx, whose endpoint rules divide the speech at pauses.

    Raises UserError for a folder without a streaming export, and for a model on which sherpa-onnx crashes.
    """

    def __init__(self, folder: PathLike, precision: str = "fp32", threads: int = 1) -> None:
        if threads < 1:
            raise UserError(f"threads: {threads}, but at least 1 is needed")
        if not any(Path(folder).glob("*.onnx")):
            raise UserError(
                f"{folder}: holds no export; python -m espnet_todm.bin.export --format streaming-onnx makes one of a size"
            )
        form, model = open_exported(folder, precision, threads)
        if not isinstance(model, ChunkedOnnx):
            raise UserError(f"{folder}: takes whole utterances; export the size with --format streaming-onnx to listen")
        order = order_for(form, model, folder, threads, enable_endpoint_detection=True)
        self.stock: Any = tried_recognizer(order).stock
        self.tail_seconds = float(model.details["tail_seconds"])
        self._stretch = model.shift / model.chunk[0] / STOCK_SUBSAMPLING

    def listen(self, blocks: Iterable[np.ndarray]) -> Iterator[Heard]:
        """What is heard, again whenever it has changed. After the last block comes the tail that the model needs.
        Without speech, nothing is heard."""
        stream, told, samples = self.stock.create_stream(), Heard((), False), 0
        for block in blocks:
            samples += len(block)
            stream.accept_waveform(SAMPLING_RATE, block)
            told = yield from self._decoded(stream, told)
        if not samples:
            return
        stream.accept_waveform(SAMPLING_RATE, np.zeros(round(self.tail_seconds * SAMPLING_RATE), dtype=np.float32))
        stream.input_finished()
        told = yield from self._decoded(stream, told)
        if told.words:
            yield Heard(told.words, True)

    def _decoded(self, stream: Any, told: Heard) -> Generator[Heard, None, Heard]:
        """Decode what is there, and tell the changes; returns what was told last."""
        while self.stock.is_ready(stream):
            self.stock.decode_stream(stream)
            now = Heard(self._words(stream), self.stock.is_endpoint(stream))
            if now.words and now != told:
                yield now
            told = now
            if now.final:
                self.stock.reset(stream)
                told = Heard((), False)
        return told

    def _words(self, stream: Any) -> tuple[Word, ...]:
        """The words of the tokens since the last pause. A token that begins with a space begins a word."""
        start = float(self.stock.start_time(stream))
        words: list[list[Any]] = []
        for token, second in zip(self.stock.tokens(stream), self.stock.timestamps(stream)):
            if not words or token.startswith((" ", "▁")):
                words.append(["", start + self._stretch * second])
            words[-1][0] += token.replace("▁", " ").strip()
        return tuple(Word(text, second) for text, second in words if text)


def speech_of(path: str) -> Iterator[np.ndarray]:
    """Blocks of a file, or of a WAV stream on standard input (``-``), as they arrive.

    Raises UserError for what is no audio, and for another sampling rate or more channels than the model hears.
    """
    if path == "-":
        yield from _of_stdin()
        return
    soundfile = needed("soundfile")
    try:
        with soundfile.SoundFile(path) as file:
            _check(path, file.samplerate, file.channels)
            while len(block := file.read(BLOCK, dtype="float32")):
                yield block
    except (OSError, RuntimeError) as error:  # soundfile raises subclasses of RuntimeError
        raise UserError(f"{path}: cannot be read as audio ({one_line(error)})") from None


def _of_stdin() -> Iterator[np.ndarray]:
    try:
        with wave.open(sys.stdin.buffer) as file:  # also of what cannot seek
            _check("standard input", file.getframerate(), file.getnchannels())
            if file.getsampwidth() != 2:
                raise UserError(f"standard input: has {8 * file.getsampwidth()} bits a sample; needed: 16")
            while data := file.readframes(BLOCK):
                yield np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    except (EOFError, wave.Error) as error:
        raise UserError(f"standard input: is no WAV stream ({one_line(error) or 'it is empty'})") from None


def _check(name: str, rate: int, channels: int) -> None:
    if (rate, channels) != (SAMPLING_RATE, 1):
        raise UserError(
            f"{name}: has {rate} Hz and {channels} channels; needed: {SAMPLING_RATE} Hz and 1 channel (sox IN -r"
            f" {SAMPLING_RATE} -c 1 OUT.wav)"
        )


def microphone() -> Iterator[np.ndarray]:
    """Blocks of the default microphone until the keyboard's Ctrl-C. Raises UserError where there is none."""
    sounddevice = needed("sounddevice", "microphone")
    blocks: queue.Queue[np.ndarray] = queue.Queue()

    def keep(block: np.ndarray, *_: Any) -> None:
        blocks.put(block[:, 0].copy())

    try:
        with sounddevice.InputStream(SAMPLING_RATE, BLOCK, channels=1, dtype="float32", callback=keep):
            while True:
                yield blocks.get()
    except KeyboardInterrupt:
        return
    except sounddevice.PortAudioError as error:
        raise UserError(f"microphone: cannot be opened ({one_line(error)})") from None
