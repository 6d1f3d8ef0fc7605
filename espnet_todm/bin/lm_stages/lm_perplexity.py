"""Stage 8: perplexity of a language model on the validation and test sets.

Example: python -m espnet_todm.bin.lm_perplexity --lm data/lm/3gram/lm.arpa --data data --sets dev test \\
    --output data/lm/3gram_perplexity
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.lm.lm_text import report_perplexity


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--lm", required=True, help="ARPA file, plain or .gz")
    parser.add_argument("--data", required=True, help="folder with <set>/text")
    parser.add_argument("--sets", nargs="+", required=True, help="sets to measure on")
    parser.add_argument("--output", required=True, help="folder to make, with perplexity.json")
    parsed = parser.parse_args(arguments)
    for name, found in report_perplexity(parsed.lm, parsed.data, parsed.sets, parsed.output).items():
        print(
            f"{name}: perplexity {found['perplexity']:.1f}, {found['perplexity_of_known']:.1f} without the "
            f"{found['unknown']} of {found['words']} words that the model has not"
        )


if __name__ == "__main__":
    run(main)
