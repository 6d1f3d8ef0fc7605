"""Stage 4: audio check and length filter. Utterances that do not pass go to quarantine.tsv with the reason.

Arguments after -- are the training command's: training sets then lose what is too short for one frame of its encoder.

Example: python -m espnet_todm.bin.filter_data --features dump/fbank --train train_sp --evaluation dev test \\
    -- --config conf/train_todm.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.checks import ANY_LENGTH, Limits, filter_split
from espnet_todm.errors import UserError
from espnet_todm.espnet.encoder_input import shortest_input


def main(arguments: Sequence[str]) -> None:
    default = Limits()
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder that holds the data folders (default data)")
    parser.add_argument("--features", required=True, help="e.g. dump/fbank; org/<split> is read, <split> is written")
    parser.add_argument("--train", nargs="*", default=[], help="splits to train on: all limits apply")
    parser.add_argument(
        "--evaluation", nargs="*", default=[], help="splits to measure on: lose only what cannot be decoded"
    )
    parser.add_argument("--sampling_rate", type=int, default=default.sampling_rate, help="Hz (default 16000)")
    parser.add_argument("--min_seconds", type=float, default=default.min_seconds, help="default 0.1")
    parser.add_argument("--max_seconds", type=float, default=default.max_seconds, help="default 30")
    parser.add_argument(
        "--max_clipped", type=float, default=default.max_clipped, help="share of samples (default 0.01)"
    )
    parser.add_argument(
        "--max_quarantine_share",
        type=float,
        default=default.max_quarantine_share,
        help="stop when a larger share of a split has faults (default 0.02)",
    )
    parser.add_argument("training", nargs="*", help="-- and arguments of the training command, with its --config")
    parsed = parser.parse_args(arguments)
    if not parsed.train and not parsed.evaluation:
        raise UserError("splits: none given; name them with --train and --evaluation")
    limits = Limits(
        parsed.sampling_rate, parsed.min_seconds, parsed.max_seconds, parsed.max_clipped, parsed.max_quarantine_share
    )
    needed = shortest_input(parsed.training) if parsed.training else ANY_LENGTH
    features = Path(parsed.features)
    for split in [*parsed.train, *parsed.evaluation]:
        evaluation = split not in parsed.train
        filter_split(Path(parsed.data) / split, features / "org" / split, features / split, limits, evaluation, needed)


if __name__ == "__main__":
    run(main)
