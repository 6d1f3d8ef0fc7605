"""Stage 13: decode sets with an experiment's extracted models, one job per size.

Example: python -m espnet_todm.bin.decode --experiment exp/supernet --data dump/fbank --sets dev test --jobs 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import run
from espnet_todm.launch import add_launcher_arguments, launch, launcher_arguments


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--experiment", required=True, help="folder with subnets/<size>; texts go to decode/<set>/<size>"
    )
    parser.add_argument("--data", required=True, help="folder with <set>/feats.scp or <set>/wav.scp")
    parser.add_argument("--sets", nargs="+", required=True, help="sets to decode")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes to decode with; default all that were extracted")
    parser.add_argument("--batch_seconds", type=float, default=60, help="padded seconds of speech in a batch")
    parser.add_argument(
        "--search",
        default="greedy",
        help="greedy (default), or for transducers ESPnet's default, maes, tsd, alsd or nsc",
    )
    parser.add_argument("--beam_size", type=int, default=5, help="hypotheses that a beam search keeps (default 5)")
    add_launcher_arguments(parser)
    options = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.decode import Work, decode_sets, input_table
    from espnet_todm.deploy.search import SearchOptions
    from espnet_todm.deploy.speed import subnet_folders

    search = SearchOptions(options.search, options.beam_size)
    tables = {name: str(input_table(Path(options.data) / name)) for name in options.sets}
    output = Path(options.experiment) / "decode"
    work = [
        Work(
            str(folder),
            tables,
            {name: str(output / name / folder.name / "text") for name in tables},
            options.batch_seconds,
            search,
        )
        for folder in subnet_folders(options.experiment, options.sizes)
    ]
    launch(decode_sets, work, name="decoding", **launcher_arguments(options))


if __name__ == "__main__":
    run(main)
