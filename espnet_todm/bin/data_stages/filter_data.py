"""Stage 4: audio check and length filter. Utterances that do not pass go to quarantine.tsv with the reason.

Arguments after -- are the training command's: training sets then lose what is too short for one frame of its encoder.

Example: python -m espnet_todm.bin.filter_data --features dump/fbank --train train_sp --evaluation dev test \\
    -- --config conf/train_todm.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, add_fields, from_fields, run
from espnet_todm.data.checks import ANY_LENGTH, Limits, filter_split
from espnet_todm.errors import UserError
from espnet_todm.espnet.encoder_input import shortest_input

LIMITS = {
    "sampling_rate": "Hz (default 16000)",
    "min_seconds": "default 0.1",
    "max_seconds": "default 30",
    "max_clipped": "share of samples (default 0.01)",
    "max_quarantine_share": "stop when a larger share of a split has faults (default 0.02)",
}


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder that holds the data folders (default data)")
    parser.add_argument("--features", required=True, help="e.g. dump/fbank; org/<split> is read, <split> is written")
    parser.add_argument("--train", nargs="*", default=[], help="splits to train on: all limits apply")
    parser.add_argument(
        "--evaluation", nargs="*", default=[], help="splits to measure on: lose only what cannot be decoded"
    )
    add_fields(parser, Limits, LIMITS)
    parser.add_argument("training", nargs="*", help="-- and arguments of the training command, with its --config")
    parsed = parser.parse_args(arguments)
    if not parsed.train and not parsed.evaluation:
        raise UserError("splits: none given; name them with --train and --evaluation")
    limits = from_fields(Limits, parsed)
    needed = shortest_input(parsed.training) if parsed.training else ANY_LENGTH
    features = Path(parsed.features)
    for split in [*parsed.train, *parsed.evaluation]:
        evaluation = split not in parsed.train
        filter_split(Path(parsed.data) / split, features / "org" / split, features / split, limits, evaluation, needed)


if __name__ == "__main__":
    run(main)
