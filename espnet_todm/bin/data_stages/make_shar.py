"""End of stage 4 with --feats_type shar: features that passed -> Shar folders, from which iterator: lhotse trains.

Example: python -m espnet_todm.bin.make_shar --features dump/shar --splits train_sp dev --jobs 8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.shar import make_shar
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--features", required=True, help="e.g. dump/shar; <split> is read, shards/<split>/shar is written"
    )
    parser.add_argument("--splits", nargs="+", required=True, help="sets of stage 4")
    parser.add_argument("--shard_size", type=int, help="utterances of a shard (default 1000, fewer in small sets)")
    add_launcher_arguments(parser)
    parsed = parser.parse_args(arguments)
    features = Path(parsed.features)
    for split in parsed.splits:
        how = launcher_arguments(parsed)
        make_shar(features / split, features / "shards" / split, parsed.shard_size, **how)


if __name__ == "__main__":
    run(main)
