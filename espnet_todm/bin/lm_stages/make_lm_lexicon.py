"""Stage 9: the words of a language model -> a lexicon that says how each is written in tokens.

Example: python -m espnet_todm.bin.make_lm_lexicon --lm data/lm/3gram/lm.arpa --tokens data/token_list/char \\
    --output data/lm/3gram_char
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.lm.spelling import make_lexicon

parser = Parser(__doc__)
parser.add_argument("--lm", dest="model", required=True, help="ARPA file, plain or .gz")
parser.add_argument("--tokens", required=True, help="folder of stage 5, with tokens.txt")
parser.add_argument("--pronunciations", help="for phonemes and a model of words: a table of words and their phonemes")
parser.add_argument("--output", required=True, help="folder to make, with lexicon.txt")
main = parser.calling(make_lexicon)

if __name__ == "__main__":
    run(main)
