"""Print one table of several experiments' sizes: error rate, cost, exported files and their speed.

Example: python -m espnet_todm.bin.overview exp/stock exp/supernet --set test
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "experiments", nargs="+", help="folders with scored sizes, and model_latency.json where it was measured"
    )
    parser.add_argument("--set", required=True, help="the set whose word error rates are shown, e.g. test")
    options = parser.parse_args(arguments)

    from espnet_todm.report.overview import overview

    print(overview(options.experiments, options.set).markdown(), end="")


if __name__ == "__main__":
    run(main)
