"""Stage 14: measure the real-time factor of an experiment's extracted models on this machine.

Example: python -m espnet_todm.bin.bench rtf --experiment exp/supernet --scp dump/fbank/test/feats.scp
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with subnets/<size>")
    parser.add_argument("--scp", required=True, help="feats.scp or wav.scp with the speech to time")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes to measure; default all that were extracted")
    parser.add_argument("--utterances", type=int, default=30, help="how many utterances (default 30)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args(arguments)

    register()
    from espnet_todm.bench.rtf import measure_rtf
    from espnet_todm.decode.decode import Decoder
    from espnet_todm.decode.features import read_features
    from espnet_todm.deploy.folder import subnet_folders
    from espnet_todm.espnet.load import load_extracted
    from espnet_todm.util.files import write_json

    inputs = [x for _, x in read_features(options.scp, options.utterances)]
    folders = {folder.name: folder for folder in subnet_folders(options.experiment, options.sizes)}
    decoders = {name: Decoder(*load_extracted(folder)) for name, folder in folders.items()}
    for name, figures in measure_rtf(decoders, inputs, options.threads).items():
        write_json(folders[name] / "rtf.json", figures)
        print(f"{name}: real-time factor {figures['rtf_median']:.4f} (median of {figures['utterances']} utterances)")


if __name__ == "__main__":
    run(main)
