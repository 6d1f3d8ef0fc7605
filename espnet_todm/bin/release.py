"""Release exported sizes for devices: the files, programs in Python and C for sherpa-onnx, measured numbers, checksums.

Example: python -m espnet_todm.bin.release exp/supernet/subnets/small --license LICENSE --output release
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Release one size after the other."""
    parser = Parser(description=__doc__)
    parser.add_argument("subnets", nargs="+", type=Path, help="folders of exported sizes")
    parser.add_argument("--output", type=Path, required=True, help="folder for OUTPUT/<size>/")
    parser.add_argument("--license", type=Path, help="file with the licence of the models")
    parser.add_argument("--data", help='what the scored data are, for the README, e.g. "LibriSpeech, 100 h"')
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")
    parsed = parser.parse_args(arguments)

    from espnet_todm.deploy.release import exports_of, release
    from espnet_todm.report.release_card import release_card

    for subnet in parsed.subnets:
        exports = exports_of(subnet)
        readme = release_card(exports, parsed.data, parsed.license)
        print(f"{release(exports, parsed.output, readme, parsed.license, parsed.overwrite)}: to release")


if __name__ == "__main__":
    run(main)
