"""Stage 7: sentences -> word n-grams with modified Kneser-Ney smoothing, in the ARPA format that KenLM reads.

Example: python -m espnet_todm.bin.make_ngram --text data/lm/text --order 3 --output data/lm/3gram
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.lm.ngram import make_ngram

parser = Parser(__doc__)
parser.add_argument("--text", required=True, help="folder of stage 6")
parser.add_argument("--order", type=int, default=3, help="words in the longest n-gram, 1 to 5 (default 3)")
parser.add_argument("--min_count", type=int, default=1, help="words rarer than this become <unk> (default 1)")
parser.add_argument("--output", required=True, help="folder to make, with lm.arpa")
main = parser.calling(make_ngram)

if __name__ == "__main__":
    run(main)
