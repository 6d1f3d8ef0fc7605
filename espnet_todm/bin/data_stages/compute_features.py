"""Stage 3: data folders -> filterbank archives (or raw audio) and a measure of every utterance.

Example: python -m espnet_todm.bin.compute_features --splits train_sp dev test --output dump/fbank --jobs 8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, add_fields, from_fields, run
from espnet_todm.data.features import COMPRESSIONS, FEATS_TYPES, FeatureOptions, compute_features
from espnet_todm.util.launch import add_launcher_arguments, launcher_arguments

OPTIONS = {
    "feats_type": f"of {', '.join(FEATS_TYPES)} (default fbank)",
    "sampling_rate": "Hz (default 16000)",
    "mel_bins": "filters (default 80)",
    "compression": f"of archives: {', '.join(COMPRESSIONS)} (default two-byte)",
    "shard": "utterances in a task (default 500)",
}


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder that holds the data folders (default data)")
    parser.add_argument("--splits", nargs="+", required=True, help="names of data folders")
    parser.add_argument("--output", required=True, help="e.g. dump/fbank; results go to its org/<split>")
    add_fields(parser, FeatureOptions, OPTIONS)
    add_launcher_arguments(parser)
    parsed = parser.parse_args(arguments)
    options = from_fields(FeatureOptions, parsed)
    splits = {Path(parsed.data) / split: Path(parsed.output) / "org" / split for split in parsed.splits}
    compute_features(splits, options, **launcher_arguments(parsed))


if __name__ == "__main__":
    run(main)
