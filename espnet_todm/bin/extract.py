"""Extract small models from a trained supernet.

Example: python -m espnet_todm.bin.extract --asr_train_config exp/supernet/config.yaml \\
    --output exp/supernet/subnets --sizes small --budget 10M
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run

parser = Parser(__doc__)
parser.add_argument("--asr_train_config", "--config", required=True, help="config.yaml of the supernet's training")
parser.add_argument(
    "--asr_model_file", "--checkpoint", help="its checkpoint; default the best by the config's first criterion"
)
parser.add_argument("--output", required=True, type=Path, help="folder that gets one folder per subnet")
parser.add_argument("--sizes", nargs="+", default=[], help="sizes by name, or files of cards; default all sizes")
parser.add_argument("--budget", nargs="+", default=[], help="parameter budgets, e.g. 10M")
parser.add_argument("--flops", nargs="+", default=[], help="budgets of FLOPs per second of speech, e.g. 1.2G")
parser.add_argument(
    "--latency", nargs="+", default=[], help="budgets of seconds of compute per second of speech, e.g. 0.02"
)
parser.add_argument("--latency_table", help="file of bench components, where the training had none")
parser.add_argument("--calibrate", help="feats.scp to estimate batch norm statistics on, where a subnet needs it")
parser.add_argument("--calibrate_utterances", type=int, default=200, help="how many of its utterances to use")


def main(arguments: Sequence[str]) -> None:
    options = parser.parse_args(arguments)
    register()
    from espnet_todm.decode.features import read_features
    from espnet_todm.deploy.extract import extract, load_supernet, pick_subnets
    from espnet_todm.espnet.config_inheritance import best_model
    from espnet_todm.espnet.load import read_config

    checkpoint = options.asr_model_file
    if checkpoint is None:
        checkpoint = Path(options.asr_train_config).parent / best_model(read_config(options.asr_train_config))
    supernet = load_supernet(options.asr_train_config, checkpoint)
    if options.latency_table:
        supernet.encoder.measured_in(options.latency_table)
    for subnet in pick_subnets(supernet, options.sizes, options.budget, options.flops, options.latency):
        calibration = None
        if options.calibrate:
            calibration = (x for _, x in read_features(options.calibrate, options.calibrate_utterances))
        card = extract(supernet, subnet, options.output / subnet.name, calibration)
        cost = card["cost"]
        latency = cost.get("latency_of_encoder")
        measured = "" if latency is None else f"{1000 * latency:.2f} ms per second in the encoder, "
        print(
            f"{subnet.name}: {cost['params'] / 1e6:.2f}M parameters ({cost['share_of_params']:.0%}), "
            f"{cost['flops_per_second'] / 1e9:.2f} GFLOPs per second, {measured}encoder: {card['encoder']}"
        )


if __name__ == "__main__":
    run(main)
