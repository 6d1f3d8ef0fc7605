"""Train a supernet: ESPnet's asr_train with this package's names registered.

Example: python -m espnet_todm.bin.asr_train --config conf/train_supernet.yaml --output_dir exp/supernet ...
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm import hook
from espnet_todm.bin._cli import run

hook.install(pipes=False)

LOGS = False  # ESPnet sets them up, quieter on other ranks than the first


def main(arguments: Sequence[str]) -> None:
    from espnet_todm.espnet.options import train

    train(arguments)


if __name__ == "__main__":
    run(main, logs=LOGS)
