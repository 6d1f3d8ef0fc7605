"""Stage 2: a data folder -> one that also holds speed-perturbed copies of its utterances.

Example: python -m espnet_todm.bin.perturb_speed --data data/train --output data/train_sp --factors 0.9 1.1
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.corpus import perturb_speed

parser = Parser(__doc__)
parser.add_argument("--data", required=True, help="data folder of stage 1")
parser.add_argument("--output", required=True, help="data folder to make")
parser.add_argument("--factors", nargs="+", type=float, default=[0.9, 1.1], help="speeds (default 0.9 1.1)")
main = parser.calling(perturb_speed)

if __name__ == "__main__":
    run(main)
