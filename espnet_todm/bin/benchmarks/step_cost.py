"""Measure what a supernet's training step costs against training one model, for the report of a recipe.

The model is the one that a training's config.yaml describes, with fresh weights; speech and text are random, since only
their lengths matter to the cost.

Example: python -m espnet_todm.bin.bench step --asr_train_config exp/supernet/config.yaml --output exp/supernet/cost.json
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from espnet_todm import hook, register
from espnet_todm.bin._cli import Parser, run

hook.install()


def main(arguments: Sequence[str]) -> None:
    register()
    import torch

    from espnet_todm.bench.step_cost import SINGLE, SUPERNET, measure_rounds, peak_memory, summary, workload_of_config
    from espnet_todm.util.files import write_json

    parser = Parser(description=__doc__)
    parser.add_argument("--asr_train_config", required=True, help="config.yaml that the training wrote")
    parser.add_argument("--output", required=True, help="JSON file to write: factor, bound, seconds, peak memory")
    parser.add_argument("--utterances", type=int, default=8, help="in a batch")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each utterance")
    parser.add_argument("--rounds", type=int, default=7, help="training steps to measure; medians are reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    build = partial(workload_of_config, options.asr_train_config, options.utterances, options.seconds, options.device)
    rounds = measure_rounds(build(), options.rounds)
    write_json(options.output, summary(rounds, {mode: peak_memory(build, mode) for mode in (SINGLE, SUPERNET)}))


if __name__ == "__main__":
    run(main)
