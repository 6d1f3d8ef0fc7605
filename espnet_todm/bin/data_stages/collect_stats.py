"""Stage 10: collect ESPnet's training statistics by many jobs. Arguments after -- are the training command's.

Example: python -m espnet_todm.bin.collect_stats --train_scp dump/fbank/train/feats.scp \\
    --valid_scp dump/fbank/dev/feats.scp \\
    --tokens data/token_list/char/tokens.txt --output exp/stats --jobs 4 -- --config conf/train_todm.yaml \\
    --input_size 80 --use_preprocessor true --token_type char \\
    --train_data_path_and_name_and_type dump/fbank/train/feats.scp,speech,kaldi_ark \\
    --train_data_path_and_name_and_type dump/fbank/train/text,text,text \\
    --valid_data_path_and_name_and_type dump/fbank/dev/feats.scp,speech,kaldi_ark \\
    --valid_data_path_and_name_and_type dump/fbank/dev/text,text,text
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--train_scp", required=True, help="feats.scp or wav.scp of the training set")
    parser.add_argument("--valid_scp", required=True, help="the same of the validation set")
    parser.add_argument("--tokens", required=True, help="token list, one token per line")
    parser.add_argument("--output", required=True, help="folder for the statistics")
    parser.add_argument("training", nargs="+", help="-- and the arguments of the training command")
    add_launcher_arguments(parser)
    options = parser.parse_args(arguments)

    from espnet_todm.espnet.statistics import append_vocabulary, collect_statistics
    from espnet_todm.lm.spelling import read_tokens

    launcher = launcher_arguments(options)
    known = [] if "--token_list" in options.training else ["--token_list", options.tokens]
    collect_statistics([*options.training, *known], options.train_scp, options.valid_scp, options.output, **launcher)
    append_vocabulary(options.output, len(read_tokens(options.tokens)))


if __name__ == "__main__":
    run(main)
