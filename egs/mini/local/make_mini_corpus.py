"""Stage 1 of egs/mini: make a corpus of synthesised speech in LibriSpeech's layout.

Example: python local/make_mini_corpus.py --output downloads --train_minutes 33 --nj 2
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields

from mini_corpus import MARKER, MiniOptions, make_mini_corpus

from espnet_todm.bin._cli import Parser, run
from espnet_todm.util.files import read_json

HELP = {
    "train_minutes": "minutes of training audio",
    "dev_minutes": "minutes of development audio, of voices and sentences that are not in train",
    "test_minutes": "minutes of test audio, of voices and sentences that are not in train or dev",
    "speaker_seconds": "audio per speaker; fewer seconds mean more speakers",
    "open_share": "share of open text among the sentences, 0 to 1; more is harder",
    "vocabulary_share": "share of the sentence patterns and long word lists that is used, above 0, up to 1; more is harder",
    "snr_low": "lowest signal-to-noise ratio in dB; lower is harder",
    "snr_high": "highest signal-to-noise ratio in dB",
    "seed": "seed of everything random",
}


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder in which the corpus LibriSpeech/ is made")
    parser.add_argument("--nj", type=int, default=1, help="speakers synthesised at the same time (default: 1)")
    for field in fields(MiniOptions):
        default = field.default
        parser.add_argument(
            f"--{field.name}", type=type(default), default=default, help=f"{HELP[field.name]} (default: {default})"
        )
    options = vars(parser.parse_args(arguments))
    output, nj = options.pop("output"), options.pop("nj")
    folder = make_mini_corpus(output, MiniOptions(**options), nj)
    for split, facts in read_json(folder / MARKER)["splits"].items():
        logging.info("%s: %s", split, ", ".join(f"{key}={value}" for key, value in facts.items()))


if __name__ == "__main__":
    run(main)
