"""Write extracted models in a form that on-device runtimes load.

What is written has passed the parity gate: sherpa-onnx hears on that speech what PyTorch hears. For streaming Conformers add
--format streaming-onnx --chunk 16 64. With --max_wer_points, an int8 model that is worse than this is repaired.

Example: python -m espnet_todm.bin.export exp/supernet/subnets/small exp/supernet/subnets/full \\
    --scp data/dev/wav.scp --text data/dev/text
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.bin.parity import add_parity_arguments, print_parity, read_parity_speech
from espnet_todm.deploy.forms.registry import FORMATS

if TYPE_CHECKING:
    from espnet_todm.deploy.parity.speech import Speech


parser = Parser(__doc__)
parser.add_argument("subnets", nargs="+", metavar="SUBNET_FOLDER", help="folder that extract wrote")
parser.add_argument(
    "--format",
    choices=FORMATS,
    default=FORMATS[0],
    help="onnx takes whole utterances, streaming-onnx chunks of speech (for models trained with encoder_conf: chunk)",
)
parser.add_argument(
    "--chunk",
    nargs=2,
    type=int,
    metavar=("FRAMES", "LEFT"),
    help="of streaming-onnx: encoder frames of a chunk and of its left context (default: the model's decode_chunk)",
)
parser.add_argument(
    "--precision", nargs="+", default=["fp32", "int8"], help="of fp32, int8 and fp16 (default fp32 int8)"
)
parser.add_argument(
    "--int8",
    default="dynamic",
    help="dynamic (default), 7bit or uint8 (dynamic with such weights), or static, which needs --calibrate; with"
    " --max_wer_points, what is tried first",
)
parser.add_argument("--calibrate", help="feats.scp with speech to measure activations on, for static int8")
parser.add_argument("--opset", type=int, help="version of ONNX's operators (default 17)")
parser.add_argument(
    "--output", type=Path, help="folder; with several subnets, of a folder for each (default: onnx in each)"
)
add_parity_arguments(parser)
parser.add_argument("--no_parity", action="store_true", help="skip the parity gate: nothing is tried on speech")


def main(arguments: Sequence[str]) -> None:
    options = parser.parse_args(arguments)
    register()
    from espnet_todm.deploy.int8.search import Repair
    from espnet_todm.deploy.onnx.export import OPSET, ExportOptions, export

    speech = read_parity_speech(options, ", or --no_parity to skip the gate")
    wanted = ExportOptions(
        precisions=options.precision,
        int8=options.int8,
        calibrate=options.calibrate,
        opset=options.opset or OPSET,
        format=options.format,
        chunk=options.chunk,
    )
    limited = options.max_wer_points is not None
    repair = Repair(speech, options.max_wer_points) if limited else None
    for folder in options.subnets:
        several = len(options.subnets) > 1 and options.output is not None
        output = options.output / Path(folder).resolve().name if several else options.output
        gate = _gate(folder, options, speech) if speech else None
        print(f"{folder}: {export(folder, output, wanted, gate, repair)}")


def _gate(subnet: str, options: argparse.Namespace, speech: list[Speech]) -> Callable[[Path], None]:
    """The parity gate for one subnet's files in their folder."""
    from espnet_todm.deploy.parity.gate import origin_at_hand

    precisions = list(dict.fromkeys(["fp32", *options.precision]))
    return lambda folder: print_parity(subnet, folder, speech, precisions, origin_at_hand(subnet), options)


if __name__ == "__main__":
    run(main)
