"""Measure what each component of a supernet's encoder takes on this machine; a training config is enough, no checkpoint.

Training reads the file with encoder_conf: {criterion: latency, latency_table: component_latency.json}.

Example: python -m espnet_todm.bin.bench components --config conf/train_todm.yaml --output component_latency.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.errors import UserError


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, help="training configuration, or config.yaml of an experiment")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument(
        "--runtime",
        default="torch",
        help="torch, or onnxruntime: each part as an exported model has it (default torch)",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterance (default 10)")
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is timed (default 20)")
    parser.add_argument("--input_size", type=int, help="features of a frame; default what the config says, else 80")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    options = parser.parse_args(arguments)
    if Path(options.output).exists() and not options.overwrite:
        raise UserError(
            f"--output: {options.output} exists; sizes of trainings that name it would change, so give another name or"
            f" --overwrite"
        )

    register()
    from espnet_todm.bench.components.measure import build_encoder, measure_latency, summary
    from espnet_todm.encoders.latency import save_latency
    from espnet_todm.espnet.config_inheritance import read_config

    encoder = build_encoder(read_config(options.config), options.input_size)
    table = measure_latency(encoder, options.seconds, options.threads, options.rounds, runtime=options.runtime)
    save_latency(options.output, table)
    print(f"{options.output}: {summary(table)}")


if __name__ == "__main__":
    run(main)
