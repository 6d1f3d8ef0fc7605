"""Stage 13: decode sets with an experiment's extracted models, one job per size.

A supernet trained on chunks of speech decodes as its decode_chunk says, or with --chunk otherwise, into a folder of its own.
--chunk full 32 64 16 64 decodes with full context and with two chunk sizes.

Example: python -m espnet_todm.bin.decode --experiment exp/supernet --data dump/fbank --sets dev test --jobs 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, add_fields, from_fields, run
from espnet_todm.decode.options import SearchOptions
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.util.launch import add_launcher_arguments, launch, launcher_arguments

# What a file of decoding settings may hold: options of the search and of the decoder, no paths.
SETTINGS = ("search", "beam_size", "beam_threshold", "lm_weight", "word_score", "prior_weight", "chunk")


def add_search_arguments(parser: argparse.ArgumentParser, default: str = "greedy") -> None:
    """Add the options of the search; see SearchOptions for their meaning."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--config", help="YAML file of decoding settings; options of the command line come before its own"
    )
    group.add_argument(
        "--search",
        default=default,
        help=f"greedy, prefix (CTC), or for transducers ESPnet's default, maes, tsd, alsd or nsc (default {default})",
    )
    add_fields(
        group,
        SearchOptions,
        {
            "beam_size": "hypotheses that a beam search keeps (default 5)",
            "beam_threshold": "prefix: worse ones are dropped (default 25)",
            "lm": "prefix: ARPA file of a word n-gram, plain or .gz",
            "lexicon": "prefix: file of words and their tokens, the only words then written",
            "lm_weight": "prefix: weight of --lm (default 0.5)",
            "word_score": "prefix: added for each word (default 0)",
        },
    )


def parse_with_settings(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command's options; those of ``--config`` count as given before them, so that the command line wins.

    Settings that the command has no option for are another's. Raises UserError for a key that is no decoding setting.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(list(arguments))[0].config
    settings = {} if path is None else read_config(path)
    known = {action.dest for action in parser._actions}
    given: list[str] = []
    for key, value in settings.items():
        if key not in SETTINGS:
            raise UserError(f"{path}: unknown key {key!r}; allowed: {', '.join(SETTINGS)}")
        if key in known:
            given += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return parser.parse_args([*given, *arguments])


def search_options(parsed: argparse.Namespace) -> SearchOptions:
    """What the arguments above say. Raises UserError for what is not allowed."""
    return from_fields(SearchOptions, parsed, kind=parsed.search, prior_weight=0.0)  # the prior is each size's own


parser = Parser(__doc__)
parser.add_argument("--experiment", required=True, help="folder with subnets/<size>")
parser.add_argument("--data", required=True, help="folder with <set>/feats.scp or <set>/wav.scp")
parser.add_argument("--sets", nargs="+", required=True, help="sets to decode")
parser.add_argument("--sizes", nargs="*", default=[], help="sizes to decode with; default all that were extracted")
parser.add_argument("--batch_seconds", type=float, default=60, help="padded seconds of speech in a batch")
parser.add_argument(
    "--output",
    help="texts go to OUTPUT/<set>/<size> in the experiment (default decode; with --chunk decode_chunk_...; several"
    " contexts go to OUTPUT_chunk_...)",
)
parser.add_argument(
    "--chunk",
    nargs="+",
    metavar="FRAMES LEFT",
    help="encoder frames of a chunk and of its left context, or full for whole utterances; or several of these (default:"
    " as the model's decode_chunk says)",
)
add_search_arguments(parser)
parser.add_argument("--prior_weight", type=float, default=0, help="prefix: weight of the prior that tune_lm wrote")
parser.add_argument("--tuned", action="store_true", help="prefix: take all three scales from what tune_lm wrote")
add_launcher_arguments(parser)


def main(arguments: Sequence[str]) -> None:
    parsed = parse_with_settings(parser, arguments)
    register()
    from espnet_todm.decode.context import output_folders, parse_contexts
    from espnet_todm.decode.decode import Work, decode_sets
    from espnet_todm.decode.features import input_table
    from espnet_todm.decode.scales import FOLDER, PRIOR, scaled
    from espnet_todm.deploy.folder import subnet_folders

    search, contexts = search_options(parsed), parse_contexts(parsed.chunk)
    tables = {name: str(input_table(Path(parsed.data) / name)) for name in parsed.sets}
    root = Path(parsed.experiment)

    def search_of(size: str) -> SearchOptions:
        if parsed.tuned:
            return scaled(search, root / FOLDER / size)
        prior = str(root / FOLDER / size / PRIOR) if parsed.prior_weight else None
        return replace(search, prior_weight=parsed.prior_weight, prior=prior)

    work = [
        Work(
            str(folder),
            tables,
            {name: str(root / output / name / folder.name / "text") for name in tables},
            parsed.batch_seconds,
            search_of(folder.name),
            context,
        )
        for context, output in zip(contexts, output_folders(contexts, parsed.output))
        for folder in subnet_folders(parsed.experiment, parsed.sizes)
    ]
    launch(decode_sets, work, name="decoding", **launcher_arguments(parsed))


if __name__ == "__main__":
    run(main)
