"""Stage 2: a data folder -> one that also holds speed-perturbed copies of its utterances.

Example: python -m espnet_todm.bin.perturb_speed --data data/train --output data/train_sp --factors 0.9 1.1
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.corpus import perturb_speed
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments

parser = Parser(__doc__)
parser.add_argument("--data", required=True, help="data folder of stage 1")
parser.add_argument("--output", required=True, help="data folder to make")
parser.add_argument("--factors", nargs="+", type=float, default=[0.9, 1.1], help="speeds (default 0.9 1.1)")
add_launcher_arguments(parser)


def main(arguments: Sequence[str]) -> None:
    parsed = parser.parse_args(arguments)
    perturb_speed(parsed.data, parsed.output, parsed.factors, **launcher_arguments(parsed))


if __name__ == "__main__":
    run(main)
