"""Write extracted models in a form that on-device runtimes load.

Examples:
python -m espnet_todm.bin.export --format onnx exp/supernet/subnets/small exp/supernet/subnets/full
python -m espnet_todm.bin.export --format streaming-onnx --chunk 16 64 exp/supernet/subnets/small
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("subnets", nargs="+", metavar="SUBNET_FOLDER", help="folder that extract wrote")
    parser.add_argument(
        "--format",
        choices=("onnx", "streaming-onnx"),
        default="onnx",
        help="onnx takes whole utterances, streaming-onnx chunks of speech (CTC models trained with encoder_conf: chunk)",
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
    parser.add_argument("--int8", default="dynamic", help="dynamic (default), or static, which needs --calibrate")
    parser.add_argument("--calibrate", help="feats.scp with speech to measure activations on, for static int8")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default 17)")
    parser.add_argument(
        "--output", type=Path, help="folder; with several subnets, of a folder for each (default: onnx in each)"
    )
    options = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.onnx import OPSET, ExportOptions, export
    from espnet_todm.deploy.streaming_onnx import export_streaming

    wanted = ExportOptions(
        precisions=options.precision, int8=options.int8, calibrate=options.calibrate, opset=options.opset or OPSET
    )
    write = partial(export_streaming, chunk=options.chunk) if options.format == "streaming-onnx" else export
    for folder in options.subnets:
        several = len(options.subnets) > 1 and options.output is not None
        output = options.output / Path(folder).resolve().name if several else options.output
        print(f"{folder}: {write(folder, output, wanted)}")


if __name__ == "__main__":
    run(main)
