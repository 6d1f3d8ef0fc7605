"""Pack extracted sizes for others: a folder with safetensors and a model card, and a zip that ESPnet loads.

Example: python -m espnet_todm.bin.pack exp/supernet/subnets/small --data "LibriSpeech test-clean" --output release
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Pack one size after the other."""
    parser = Parser(description=__doc__)
    parser.add_argument("subnets", nargs="+", type=Path, help="folders that extraction or fine-tuning wrote")
    parser.add_argument("--output", type=Path, help="OUTPUT/<size>/ and OUTPUT/<size>.zip (default: the size's folder)")
    parser.add_argument("--data", help='what the scored data are, for the model card, e.g. "LibriSpeech, 100 h"')
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")
    parsed = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.pack import pack
    from espnet_todm.report.model_card import model_card

    for subnet in parsed.subnets:
        packed = pack(subnet, parsed.output or subnet, model_card(subnet, parsed.data), parsed.overwrite)
        megabytes = packed.archive.stat().st_size / 1e6
        print(f"{packed.folder}: to release; {packed.archive}: {megabytes:.2f} MB, for ESPnet")


if __name__ == "__main__":
    run(main)
