"""Pack the recipe's features and transcripts of LibriSpeech folders into one small file (see features.py).

Example: python -m benchmarks.gpu.pack_features --corpus downloads/LibriSpeech --splits train-mini dev-mini test-mini \\
    --output benchmarks/exp/features.npz

The corpus may also hold Ogg files. Prints the size of the file and the error of the features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Fbank, FbankConfig

from benchmarks.gpu.features import STEP, Utterance, read_corpus, write_corpus
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import MEL_BINS, SAMPLING_RATE
from espnet_todm.util.files import read_table

SUFFIXES = (".flac", ".ogg")


def utterances(folder: Path) -> list[Utterance]:
    """Features as in the recipe's stage 3, of every utterance with a transcript. Raises UserError if there is none."""
    extractor = Fbank(FbankConfig(sampling_rate=SAMPLING_RATE, num_filters=MEL_BINS))
    texts = {key: text for table in folder.rglob("*.trans.txt") for key, text in read_table(table).items()}
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.stem in texts):
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != SAMPLING_RATE or samples.ndim != 1:
            raise UserError(
                f"{path}: {rate} Hz, shape {samples.shape}; {SAMPLING_RATE} Hz and one channel are expected"
            )
        features = np.asarray(extractor.extract(samples[None], SAMPLING_RATE), np.float32)
        found.append(Utterance(path.stem, texts[path.stem], features))
    if not found:
        raise UserError(f"{folder}: no {' or '.join(SUFFIXES)} with a line in a *.trans.txt")
    return found


def measured(path: Path, originals: dict[str, list[Utterance]]) -> str:
    """A line about the written file: its size, and the error of what it gives back."""
    squares, worst, values, frames = 0.0, 0.0, 0, 0
    for split, given in read_corpus(path).items():
        before = {u.name: u.features for u in originals[split]}
        for utterance in given:
            error = np.abs(utterance.features - before[utterance.name])
            squares, worst = squares + float(np.square(error).sum()), max(worst, float(error.max()))
            values, frames = values + error.size, frames + len(error)
    size = path.stat().st_size
    return (
        f"{path}: {size / 2**20:.1f} MiB, {frames / 360000:.2f} hours, {8 * size / values:.2f} bits a value;"
        f" error {(squares / values) ** 0.5:.3f} nats (root mean square), at most {worst:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that holds the splits' folders")
    parser.add_argument("--splits", nargs="+", default=["train-mini", "dev-mini", "test-mini"])
    parser.add_argument("--step", type=float, default=STEP, help="of the rounded log energies, in nats")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    corpus = {split: utterances(options.corpus / split) for split in options.splits}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_corpus(options.output, corpus, options.step)
    print(measured(options.output, corpus))


if __name__ == "__main__":
    main()
