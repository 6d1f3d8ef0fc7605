"""Stage 14: count word and character errors of every decoded size.

Example: python -m espnet_todm.bin.score --experiment exp/train_todm --data dump/fbank --sets "test_clean test_other"
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.report.tables import error_table
from espnet_todm.scoring.scores import DECODE, OFFICIAL_SIZES, official_size_note, score_experiment


def main(arguments: Sequence[str]) -> None:
    """Write score.json beside each decoded text and print the tables."""
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with decode/<set>/<size>/text, e.g. exp/train_todm")
    parser.add_argument("--data", required=True, help="folder with the references <set>/text, e.g. dump/fbank")
    parser.add_argument("--sets", required=True, help='sets to score, e.g. "test_clean test_other"')
    parser.add_argument("--sizes", help='sizes to score, e.g. "full small"; default: all that were decoded')
    parser.add_argument(
        "--decode",
        nargs="+",
        default=[DECODE],
        help=f"folders of the texts in the experiment, e.g. decode_chunk_full decode_chunk_16_64 (default: {DECODE})",
    )
    parser.add_argument("--corpus", choices=sorted(OFFICIAL_SIZES), help="warn when its official sets are not complete")
    parser.add_argument(
        "--case_sensitive",
        action="store_true",
        help="count The for the as an error, as sclite does with -s (default: no)",
    )
    options = parser.parse_args(arguments)
    sizes, sets = options.sizes.split() if options.sizes else None, options.sets.split()
    scores = [
        score
        for decode in options.decode
        for score in score_experiment(options.experiment, options.data, sets, sizes, decode, options.case_sensitive)
    ]
    for note in dict.fromkeys(official_size_note(score, options.corpus) for score in scores):
        if note is not None:
            logging.warning("%s", note)
    for title, unit in (("WER", "words"), ("CER", "characters")):
        print(f"### {title}\n{error_table(scores, unit).markdown()}")


if __name__ == "__main__":
    run(main)
