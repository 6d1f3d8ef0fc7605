"""Train on the CPU with several processes that share each batch: on small models far faster than threads.

Example: python -m espnet_todm.bin.asr_train_cpu --processes 2 -- --config conf/train_todm.yaml --output_dir exp/supernet ...
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="as many as there are cores")
    parser.add_argument("training", nargs="+", help="-- and the arguments of espnet_todm.bin.asr_train")
    options = parser.parse_args(arguments)

    from espnet_todm.trainers.cpu_processes import train

    train(options.training, options.processes)


if __name__ == "__main__":
    run(main)
