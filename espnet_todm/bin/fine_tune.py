"""Stage 12, optional: train extracted sizes on by themselves for some updates; each result is a size like any other.

It goes to the folder of the size with _ft behind its name, and what the training writes to fine_tune/ beside subnets/.
Run it where the supernet was trained, since the data are taken from the size's config.

Example: python -m espnet_todm.bin.fine_tune exp/supernet/subnets/small --steps 300 --lr 0.001
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Fine-tune one size after the other."""
    parser = Parser(description=__doc__)
    parser.add_argument("subnets", nargs="+", type=Path, help="folders that extraction wrote")
    parser.add_argument("--steps", type=int, default=300, help="updates (default 300)")
    parser.add_argument("--lr", type=float, default=0.001, help="AdamW's highest rate (default 0.001)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: that of each size)")
    parser.add_argument("--work", type=Path, help="folder for the trainings (default: fine_tune/ beside subnets/)")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs; 0 (default) trains on the CPU")
    parser.add_argument("--processes", type=int, default=2, help="on the CPU, as many as there are cores (default 2)")
    parser.add_argument("--int8", action="store_true", help="with the rounding errors of int8, before an export to it")
    parser.add_argument("--training_args", default="", help="more options of asr_train, in one pair of quotes")
    parsed = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.fine_tune import SUFFIX, FineTuning, fine_tune

    more = shlex.split(parsed.training_args)
    options = FineTuning(parsed.steps, parsed.lr, parsed.processes, parsed.ngpu, parsed.int8, more)
    for subnet in parsed.subnets:
        name = f"{subnet.resolve().name}{SUFFIX}"
        output = (parsed.output or subnet.parent) / name
        work = (parsed.work or subnet.parent.parent / "fine_tune") / name
        fine_tune(subnet, output, work, options)
        print(f"{output}: {subnet.name} after {options.steps} more updates")


if __name__ == "__main__":
    run(main)
