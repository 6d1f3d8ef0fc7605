"""Measure what each component of an encoder costs in time on this machine, for sizes with criterion: latency.

Example: python -m espnet_todm.bin.measure_latency --config conf/train_ortho.yaml --output latency.json
Then, in that configuration: encoder_conf: {criterion: latency, latency_table: latency.json, ...}
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from espnet_todm.bin._cli import run


def main(arguments: Sequence[str]) -> None:
    """Write the table and say how well it predicts whole subnets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="training configuration; its weights do not matter")
    parser.add_argument("--output", required=True, help="the table (JSON)")
    parser.add_argument("--input_size", type=int, default=80, help="features per frame (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterance (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="times that everything runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of this CPU (default: %(default)s)")
    options = parser.parse_args(arguments)

    from espnet_todm.deploy.latency import measure_latency
    from espnet_todm.encoders.conformer import TodmConformerEncoder
    from espnet_todm.errors import UserError
    from espnet_todm.overlay import read_config

    config = read_config(options.config)
    if config.get("encoder") != "todm_conformer":
        raise UserError(f"{options.config}: encoder: {config.get('encoder')!r} is no supernet; needed: todm_conformer")
    ours = ("sizes", "criterion", "latency_table", "subnet")  # none of which changes what is measured
    conf = {key: value for key, value in config.get("encoder_conf", {}).items() if key not in ours}
    encoder = TodmConformerEncoder(config.get("input_size") or options.input_size, **conf)
    table = measure_latency(encoder, options.seconds, options.rounds, options.threads)
    table.write(options.output)
    for share, predicted, measured in table.check:
        print(
            f"{100 * share:5.1f}% of the parameters: predicted {1e3 * predicted:.3f}, measured {1e3 * measured:.3f} ms/s"
        )
    print(
        f"{options.output}: written; predictions of whole subnets are off by up to {100 * table.largest_error():.0f}%"
    )


if __name__ == "__main__":
    run(main)
