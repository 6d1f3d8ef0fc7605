"""Stage 1: a corpus in LibriSpeech's layout -> data folders (lhotse cuts and Kaldi tables)."""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.corpus import prepare_split
from espnet_todm.data.librispeech import PRESETS, corpus_folder, download, parse_split

EXAMPLE = (
    "example: python -m espnet_todm.bin.prepare_data --corpus /corpora --splits train-clean-100 dev-clean test-clean"
)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--corpus", required=True, help="folder that holds LibriSpeech/ (or the splits themselves)")
    parser.add_argument(
        "--splits", nargs="+", required=True, help=f"folders, name=folder+folder, or {', '.join(PRESETS)}"
    )
    parser.add_argument("--output", default="data", help="data folders are made in this folder (default data)")
    parser.add_argument("--limit", type=int, help="keep this many utterances of each split")
    parser.add_argument("--download", action="store_true", help="download what is missing of the official splits")
    parsed = parser.parse_args(arguments)
    splits = dict(parse_split(spec, parsed.corpus) for spec in parsed.splits)
    if parsed.download:
        download(parsed.corpus, sorted({folder for folders in splits.values() for folder in folders}))
    corpus = corpus_folder(parsed.corpus)
    for name, folders in splits.items():
        prepare_split(corpus, name, folders, parsed.output, parsed.limit)


if __name__ == "__main__":
    run(main)
