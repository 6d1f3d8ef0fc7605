"""Decode one set with one extracted model, greedy CTC.

Example: python -m espnet_todm.bin.decode --model exp/supernet/subnets/small --scp dump/fbank/test/feats.scp \
    --output exp/supernet/decode/test/small/text
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from espnet_todm.bin._cli import run


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an extracted model")
    parser.add_argument("--scp", required=True, help="feats.scp or wav.scp of the set")
    parser.add_argument("--output", required=True, help="file that gets one line per utterance: its name and words")
    parser.add_argument("--batch_frames", type=int, default=6000, help="padded frames (or samples) per batch")
    options = parser.parse_args(arguments)

    from espnet_todm.deploy.decode import GreedyDecoder, decode
    from espnet_todm.deploy.features import read_features
    from espnet_todm.deploy.load import load_extracted
    from espnet_todm.files import write_table

    decoder = GreedyDecoder(*load_extracted(options.model))
    write_table(options.output, dict(decode(decoder, read_features(options.scp), options.batch_frames)))


if __name__ == "__main__":
    run(main)
