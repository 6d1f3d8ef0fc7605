"""Search for the best subnets of a trained supernet: an error rate or loss against parameters, FLOPs or measured latency.

Subnets are scored with the supernet's own weights; nothing is trained. The search goes on where it was stopped, and
several machines may work on one --storage. OUTPUT gets SEARCH.md with tables and pictures, search.json with all trials, and
a card for each subnet of the Pareto set, which espnet_todm.bin.extract --sizes OUTPUT/cards/NAME.json makes a model of.

Example: python -m espnet_todm.bin.search --experiment exp/train_todm --data dump/fbank --set dev --text data/dev/text \\
    --objectives wer params --budget params=1.2M --trials 300 --test_sets test --output exp/train_todm/search
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from espnet_todm import register
from espnet_todm.bin._cli import Parser, from_fields, run
from espnet_todm.search.space import GRANULARITIES

if TYPE_CHECKING:
    from espnet_todm.deploy.extract import Supernet
    from espnet_todm.search.evaluate import Evaluator
    from espnet_todm.search.subnet_search import SubnetSearch


parser = Parser(__doc__)
parser.add_argument("--experiment", required=True, type=Path, help="folder of the supernet's training")
parser.add_argument("--checkpoint", help="its checkpoint; default the best by the config's first criterion")
parser.add_argument("--data", required=True, type=Path, help="folder with <set>/feats.scp or <set>/wav.scp")
parser.add_argument("--set", required=True, help="set to score subnets on, such as dev")
parser.add_argument("--text", type=Path, help="its transcripts; default DATA/<set>/text")
parser.add_argument("--utterances", type=int, help="score on so many utterances only, spread over the set")
parser.add_argument("--test_sets", nargs="*", default=[], help="sets to score the best of each method on in the end")
parser.add_argument(
    "--objectives",
    nargs="+",
    default=["wer", "params"],
    help="one of wer, cer, loss, and params, flops or latency (default: wer params)",
)
parser.add_argument("--budget", nargs="+", default=[], help="most that a subnet may cost: params=1.2M flops=100M ...")
parser.add_argument("--compare_at", nargs="+", default=[], help="budgets by the first criterion to compare at: 1M 1.5M")
parser.add_argument("--latency_table", help="file of bench components, where the training had none")
parser.add_argument("--trials", type=int, default=200, help="subnets in all, earlier runs counted (default 200)")
parser.add_argument("--baseline", type=int, help="subnets of a random search beside it; default as many, 0 for none")
parser.add_argument("--granularity", choices=GRANULARITIES, default="layer", help="what is chosen (default layer)")
parser.add_argument("--population", type=int, default=24, help="subnets of a generation (default 24)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--storage", help="optuna's storage; default sqlite:///OUTPUT/study.db")
parser.add_argument("--name", default="search", help="of the study in the storage (default search)")
parser.add_argument("--calibrate", help="feats.scp to estimate batch norm statistics on, where subnets need it")
parser.add_argument("--calibrate_utterances", type=int, default=20, help="how many of its utterances (default 20)")
parser.add_argument("--batch_seconds", type=float, default=60, help="padded seconds of speech in a batch")
parser.add_argument("--output", required=True, type=Path, help="folder of the results")


def main(arguments: Sequence[str]) -> None:
    options = parser.parse_args(arguments)
    register()
    from espnet_todm.deploy.extract import load_supernet
    from espnet_todm.espnet.config_inheritance import CONFIG, best_model
    from espnet_todm.espnet.load import read_config
    from espnet_todm.search.subnet_search import SearchPlan, SubnetSearch, parse_budgets
    from espnet_todm.util.files import make_folder
    from espnet_todm.util.units import parse_amount

    plan = from_fields(
        SearchPlan,
        options,
        storage=options.storage or f"sqlite:///{options.output / 'study.db'}",
        budgets=parse_budgets(options.budget),
        compare_at=[parse_amount(text) for text in options.compare_at],
    )
    config = options.experiment / CONFIG
    supernet = load_supernet(config, options.checkpoint or options.experiment / best_model(read_config(config)))
    if options.latency_table:
        supernet.encoder.measured_in(options.latency_table)
    search = SubnetSearch(evaluator(supernet, options, options.set, options.text, options.utterances), plan)
    others = {split: evaluator(supernet, options, split) for split in options.test_sets}
    make_folder(options.output)
    search.open()
    try:
        search.score_trials()
    except KeyboardInterrupt:
        if search.search.trials():
            write(search, options, {})
        raise
    print(write(search, options, others))


def evaluator(
    supernet: Supernet,
    options: argparse.Namespace,
    split: str,
    text: Optional[Path] = None,
    limit: Optional[int] = None,
) -> Evaluator:
    """What scores on a set."""
    from espnet_todm.decode.features import input_table, read_features
    from espnet_todm.search.evaluate import Evaluator
    from espnet_todm.util.evenly import evenly
    from espnet_todm.util.files import read_table

    references = read_table(text or options.data / split / "text")
    references = {name: references[name] for name in evenly(list(references), limit)}
    calibration = None
    if options.calibrate:
        calibration = [x for _, x in read_features(options.calibrate, options.calibrate_utterances)]
    utterances = read_features(input_table(options.data / split))
    return Evaluator(supernet, utterances, references, split, options.batch_seconds, calibration)


def write(search: SubnetSearch, options: argparse.Namespace, others: dict[str, Evaluator]) -> str:
    """Write cards and report; returns the report's text."""
    from espnet_todm.search.found import write_cards
    from espnet_todm.search.report import write_report

    settings = {
        "experiment": str(options.experiment),
        "budget": " ".join(options.budget) or "none",
        "seed": options.seed,
    }
    report = search.report(settings, others)
    write_cards(search.evaluator.supernet, report.front, options.set, options.output / report.cards)
    return write_report(report, options.output)


if __name__ == "__main__":
    run(main)
