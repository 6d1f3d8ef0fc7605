"""Stage 5: training text -> token list and sentencepiece model, in ESPnet's order.

Example: python -m espnet_todm.bin.make_tokens --text data/train/text --token_type unigram --size 500 \\
    --output data/token_list/unigram_500
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.tokens import TOKEN_TYPES, make_tokens

parser = Parser(__doc__)
parser.add_argument("--text", dest="texts", nargs="+", required=True, help="Kaldi text tables, plain or .gz")
parser.add_argument("--token_type", choices=TOKEN_TYPES, default="unigram", help="default unigram")
parser.add_argument("--size", type=int, help="tokens in all; char takes all characters and needs none")
parser.add_argument("--output", required=True, help="folder to make, with tokens.txt and bpe.model")
main = parser.calling(make_tokens)

if __name__ == "__main__":
    run(main)
