"""Print words as they are spoken: a streaming export on a file, on standard input or on the microphone.

In a terminal, words appear as they are found, and a line is final after a pause. Elsewhere only final lines are printed.
Each begins with the second of its first word.

Example: python -m espnet_todm.bin.listen exp/supernet/subnets/small --wav speech.wav
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from espnet_todm.bin._cli import Parser, run
from espnet_todm.deploy.listen import Heard, Listener, microphone, speech_of
from espnet_todm.deploy.onnx.folder import PRECISIONS, STREAMING_FOLDER
from espnet_todm.util.acoustics import SAMPLING_RATE

parser = Parser(__doc__)
parser.add_argument("model", help="folder of a size with a streaming export in it, or that export itself")
source = parser.add_mutually_exclusive_group(required=True)
source.add_argument("--wav", help="16 kHz and one channel: a file, or - for a WAV stream on standard input")
source.add_argument("--microphone", action="store_true", help="the default one, until Ctrl-C; needs sounddevice")
parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="default fp32")
parser.add_argument("--threads", type=int, default=1, help="default 1")
parser.add_argument("--realtime", action="store_true", help="read --wav as slowly as it was spoken")
parser.add_argument("--words", action="store_true", help="print each word of a final line with its second")


class Clock:
    """How much speech was read, and how long computing took: the time outside of reading."""

    def __init__(self, blocks: Iterable[np.ndarray], realtime: bool) -> None:
        self.blocks, self.realtime = blocks, realtime
        self.samples, self.waited, self.start = 0, 0.0, time.perf_counter()

    @property
    def speech(self) -> float:
        """Seconds."""
        return self.samples / SAMPLING_RATE

    @property
    def computing(self) -> float:
        """Seconds."""
        return time.perf_counter() - self.start - self.waited

    def __iter__(self) -> Iterator[np.ndarray]:
        blocks = iter(self.blocks)
        while True:
            before = time.perf_counter()
            block = next(blocks, None)
            if block is not None and self.realtime:
                end = self.start + (self.samples + len(block)) / SAMPLING_RATE
                time.sleep(max(0.0, end - time.perf_counter()))
            self.waited += time.perf_counter() - before
            if block is None:
                return
            self.samples += len(block)
            yield block


def main(arguments: Sequence[str]) -> None:
    """Listen, print, and say at the end how fast that was."""
    options = parser.parse_args(arguments)
    folder = Path(options.model)
    folder = folder / STREAMING_FOLDER if (folder / STREAMING_FOLDER).is_dir() else folder
    listener = Listener(folder, options.precision, options.threads)
    clock = Clock(microphone() if options.microphone else speech_of(options.wav), options.realtime)
    first = ""
    for heard in listener.listen(clock):
        if not first:
            delay = max(0.0, clock.speech - heard.words[0].second)
            first = f", the first word {delay:.2f} s after its beginning"
        show(heard, options.words)
    factor = clock.computing / clock.speech if clock.speech else 0.0
    told = f"{clock.speech:.1f} s of speech, {clock.computing:.2f} s of computing (real-time factor {factor:.3f})"
    print(told + first, file=sys.stderr)


def show(heard: Heard, words: bool) -> None:
    """Print what is final. In a terminal, the last line is what has been heard since."""
    live = sys.stdout.isatty()
    line = f"{heard.words[0].second:8.2f}  {heard.text}"
    if heard.final and words:
        line = "\n".join(f"{word.second:8.2f}  {word.text}" for word in heard.words)
    if heard.final:
        print(f"\r\033[K{line}" if live else line, flush=True)
    elif live:  # the end of a line that is longer than the terminal
        width = shutil.get_terminal_size().columns - 1
        print("\r\033[K" + line[-width:], end="", flush=True)


if __name__ == "__main__":
    run(main, logs=False)
