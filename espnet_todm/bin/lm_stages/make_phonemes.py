"""Stage 5 for phoneme targets: a lexicon and the splits' words -> token list and the splits' text in phonemes.

Example: python -m espnet_todm.bin.make_phonemes --lexicon TEDLIUM_release2/TEDLIUM.152k.dic --data dump/fbank \\
    --splits train_sp dev test --output data/token_list/phone
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.lm.lexicon import make_phonemes

parser = Parser(__doc__)
parser.add_argument("--lexicon", required=True, help="words and their phonemes, one word a line")
parser.add_argument("--data", required=True, help="folder of the filtered splits, e.g. dump/fbank")
parser.add_argument("--splits", nargs="+", required=True, help="names of filtered splits")
parser.add_argument("--output", required=True, help="folder to make, with tokens.txt and <split>/text")
parser.add_argument(
    "--max_unknown_share", type=float, default=0.01, help="of a split's words not in the lexicon (default 0.01)"
)
main = parser.calling(make_phonemes)

if __name__ == "__main__":
    run(main)
