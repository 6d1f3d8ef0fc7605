"""Stage 1: a corpus in LibriSpeech's, TED-LIUM 2's or Kaldi's layout -> data folders (lhotse cuts and Kaldi tables).

Example: python -m espnet_todm.bin.prepare_data --corpus /corpora --splits train-clean-100 dev-clean test-clean
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_todm.bin._cli import Parser, add_fields, from_fields, run
from espnet_todm.data import kaldi, librispeech, tedlium
from espnet_todm.data.corpus import prepare_split
from espnet_todm.data.listing import Reader, corpus_folder, parse_split
from espnet_todm.data.sorted_tables import sorted_table
from espnet_todm.errors import UserError
from espnet_todm.scoring.scores import OFFICIAL_SIZES, official_note
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments

Layout = tuple[Path, dict[str, tuple[str, ...]], Reader]  # the folder of the splits, their parts, what lists them

parser = Parser(__doc__)
parser.add_argument(
    "--corpus", required=True, help="folder that holds LibriSpeech/, TEDLIUM_release2/ or data/ (or the splits)"
)
parser.add_argument(
    "--splits", nargs="+", required=True, help=f"folders, name=folder+folder, or {', '.join(librispeech.PRESETS)}"
)
parser.add_argument("--output", default="data", help="data folders are made in this folder (default data)")
parser.add_argument("--limit", type=int, help="keep this many utterances of each split")
layouts = ("librispeech", "tedlium2", "kaldi")
parser.add_argument("--layout", choices=layouts, default="librispeech", help="default librispeech")
parser.add_argument("--official", choices=sorted(OFFICIAL_SIZES), help="warn when its official sets are not whole")
parser.add_argument("--download", action="store_true", help="LibriSpeech: download what is missing of its splits")
told = {"unknown": "keep (default) or remove <unk>", "max_overlap": "seconds segments share (default 0.1)"}
add_fields(parser, tedlium.TedliumOptions, {name: f"TED-LIUM: {text}" for name, text in told.items()})

add_launcher_arguments(parser)


def main(arguments: Sequence[str]) -> None:
    parsed = parser.parse_args(arguments)
    corpus, splits, reader = {"librispeech": _librispeech, "tedlium2": _tedlium, "kaldi": _kaldi}[parsed.layout](parsed)
    for name, folders in splits.items():
        data = prepare_split(corpus, name, folders, parsed.output, parsed.limit, reader, **launcher_arguments(parsed))
        if parsed.official and parsed.limit is None:
            _check_size(data, parsed.official)


def _librispeech(parsed: Namespace) -> Layout:
    splits = dict(librispeech.parse_split(spec, parsed.corpus) for spec in parsed.splits)
    if parsed.download:
        librispeech.download(parsed.corpus, sorted({folder for folders in splits.values() for folder in folders}))
    return librispeech.corpus_folder(parsed.corpus), splits, librispeech.list_utterances


def _tedlium(parsed: Namespace) -> Layout:
    if parsed.download:
        raise UserError("download: TED-LIUM is not downloaded here; its archive is at openslr.org/19")
    options = from_fields(tedlium.TedliumOptions, parsed)
    splits = dict(parse_split(spec) for spec in parsed.splits)
    return tedlium.corpus_folder(parsed.corpus), splits, partial(tedlium.list_utterances, options=options)


def _kaldi(parsed: Namespace) -> Layout:
    if parsed.download:
        raise UserError("download: what Kaldi's data folders name is not downloaded")
    corpus = corpus_folder(parsed.corpus, "data")
    if corpus.resolve() == Path(parsed.output).resolve():
        raise UserError(f"corpus: {corpus} is where this command writes; give data folders that stand elsewhere")
    return corpus, dict(parse_split(spec) for spec in parsed.splits), kaldi.list_utterances


def _check_size(data: Path, official: str) -> None:
    utterances, words = 0, 0
    for _, text in sorted_table(data / "text"):
        utterances, words = utterances + 1, words + len(text.split())
    note = official_note(data.name, utterances, words, official)
    if note:
        logging.warning("%s", note)


if __name__ == "__main__":
    run(main)
