"""Unpack an archive that pack wrote, or somebody else's of that form: names in it are checked, and no weights are unpickled.

Example: python -m espnet_todm.bin.unpack small.zip --output small
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("archive", type=Path, help="the zip file")
    parser.add_argument("--output", type=Path, help="folder to make (default: the archive's name without .zip)")
    parsed = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.pack import unpack
    from espnet_todm.espnet.load import load_extracted

    folder = unpack(parsed.archive, parsed.output or parsed.archive.with_suffix(""))
    model, _ = load_extracted(folder)
    print(f"{folder}: a model of {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")


if __name__ == "__main__":
    run(main)
