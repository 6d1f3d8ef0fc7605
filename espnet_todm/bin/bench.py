"""Measure models: components, models, step, rtf or nonspeech; ``bench KIND --help`` tells its options.

components: latency of each component of an encoder, for sizes by latency; needs a training configuration alone.
models: real-time factor, latency, peak memory and file size of exported models.
step: a supernet's training step against one model's.
rtf: real-time factor of extracted models in PyTorch.
nonspeech: words that models write where nobody speaks.

Example: python -m espnet_todm.bin.bench models --experiment exp/supernet --scp data/test/wav.scp --output model_latency.json
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from espnet_todm import hook
from espnet_todm.bin._cli import Parser, run

hook.install()  # child processes of a measurement import this module

# Their modules are commands of their own, under the names that they had first.
KINDS = {
    "components": "measure_latency",
    "models": "latency",
    "step": "step_cost",
    "rtf": "measure_rtf",
    "nonspeech": "measure_nonspeech",
}


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=KINDS, help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of that kind")
    chosen = parser.parse_args(arguments)
    sys.argv = [f"{parser.prog} {chosen.kind}", *chosen.options]  # where argparse takes the program's name from
    importlib.import_module(f"espnet_todm.bin.{KINDS[chosen.kind]}").main(chosen.options)


if __name__ == "__main__":
    run(main)
