"""Stage 6: transcripts and more text -> the sentences that the language model is estimated from.

Example: python -m espnet_todm.bin.make_lm_text --transcripts data/train/text --output data/lm/text
"""

from __future__ import annotations

from espnet_todm.bin._cli import Parser, run
from espnet_todm.lm.lm_text import make_lm_text

parser = Parser(__doc__)
parser.add_argument(
    "--transcripts", nargs="*", default=[], help="Kaldi text tables, plain or .gz; an utterance counts once"
)
parser.add_argument("--text", dest="texts", nargs="*", default=[], help="files with one sentence a line, plain or .gz")
parser.add_argument("--lexicon", help="for models of phonemes: a table of words and their phonemes")
parser.add_argument("--output", required=True, help="folder to make, with text: one sentence a line")
main = parser.calling(make_lm_text)

if __name__ == "__main__":
    run(main)
