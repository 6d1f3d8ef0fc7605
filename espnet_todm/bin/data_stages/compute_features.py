"""Stage 3: data folders -> filterbank archives (or raw audio) and a measure of every utterance.

Example: python -m espnet_todm.bin.compute_features --splits train_sp dev test --output dump/fbank --jobs 8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.features import COMPRESSIONS, FEATS_TYPES, FeatureOptions, compute_features
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments


def main(arguments: Sequence[str]) -> None:
    default = FeatureOptions()
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder that holds the data folders (default data)")
    parser.add_argument("--splits", nargs="+", required=True, help="names of data folders")
    parser.add_argument("--output", required=True, help="e.g. dump/fbank; results go to its org/<split>")
    parser.add_argument("--feats_type", choices=FEATS_TYPES, default=default.feats_type, help="default fbank")
    parser.add_argument("--sampling_rate", type=int, default=default.sampling_rate, help="Hz (default 16000)")
    parser.add_argument("--mel_bins", type=int, default=default.mel_bins, help="filters (default 80)")
    parser.add_argument(
        "--compression", choices=list(COMPRESSIONS), default=default.compression, help="of archives (default two-byte)"
    )
    parser.add_argument("--shard", type=int, default=default.shard, help="utterances in a task (default 500)")
    add_launcher_arguments(parser)
    parsed = parser.parse_args(arguments)
    options = FeatureOptions(parsed.feats_type, parsed.sampling_rate, parsed.mel_bins, parsed.compression, parsed.shard)
    splits = {Path(parsed.data) / split: Path(parsed.output) / "org" / split for split in parsed.splits}
    compute_features(splits, options, **launcher_arguments(parsed))


if __name__ == "__main__":
    run(main)
