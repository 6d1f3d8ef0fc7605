"""Compare exported models with what was trained, step by step, on real utterances; exit status 1 where they part.

Example: python -m espnet_todm.bin.parity --experiment exp/supernet --scp data/dev/wav.scp --text data/dev/text \\
    --precision fp32 int8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike

if TYPE_CHECKING:
    from espnet_todm.deploy.parity.gate import Origin
    from espnet_todm.deploy.parity.speech import Speech


def add_parity_arguments(parser: argparse.ArgumentParser) -> None:
    """Speech and limits of the gate, for every command that runs it."""
    parser.add_argument("--scp", help="wav.scp with speech to compare on, best of a development set")
    parser.add_argument("--text", help="its text")
    parser.add_argument("--utterances", type=int, default=20, help="how many of them, evenly spread (default 20)")
    parser.add_argument(
        "--max_wer_points",
        type=float,
        help="how far int8's and fp16's WER may be above PyTorch's, in percentage points (default: any)",
    )


def read_parity_speech(options: argparse.Namespace, otherwise: str = "") -> list[Speech]:
    """The utterances that the arguments name; none with ``--no_parity``. Raises UserError when there is neither, and for an
    impossible limit."""
    from espnet_todm.deploy.parity.report import check_wer_points
    from espnet_todm.deploy.parity.speech import read_speech

    if getattr(options, "no_parity", False):
        check_wer_points(options.max_wer_points, options.precision, None)
        return []
    for name in ("scp", "text"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} is missing: parity is compared on real speech; give --scp and --text{otherwise}")
    speech = read_speech(options.scp, options.text, options.utterances)
    check_wer_points(options.max_wer_points, options.precision, sum(len(one.text.split()) for one in speech))
    return speech


def print_parity(
    subnet: PathLike,
    exported: PathLike,
    speech: Sequence[Speech],
    precisions: Sequence[str],
    origin: Optional[Origin],
    options: argparse.Namespace,
    threads: int = 1,
) -> None:
    """Compare one exported model and print its table, also where it does not hold; then that is raised."""
    from espnet_todm.deploy.parity.gate import ParityError, check_parity
    from espnet_todm.deploy.parity.report import Limits

    limits = Limits(wer_points=options.max_wer_points)
    try:
        print(check_parity(subnet, exported, speech, precisions, origin, limits, threads).markdown())
    except ParityError as error:
        print(error.report.markdown())
        raise


def main(arguments: Sequence[str]) -> None:
    """Print one table for each size; the first fault ends it."""
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with config.yaml and subnets/<size>/onnx")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes to compare; default all that were extracted")
    parser.add_argument("--folder", default="onnx", help="of the exported files in a size's folder (default onnx)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="fp32, fp16 or int8 (default fp32)")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute one utterance (default 1)")
    add_parity_arguments(parser)
    options = parser.parse_args(arguments)

    register()
    from espnet_todm.deploy.folder import subnet_folders
    from espnet_todm.deploy.parity.gate import find_origin

    speech = read_parity_speech(options)
    folders = subnet_folders(options.experiment, options.sizes)
    if not folders:
        raise UserError(f"{options.experiment}/subnets: holds no extracted size")
    for subnet in folders:
        origin = find_origin(subnet, options.experiment)
        print_parity(subnet, subnet / options.folder, speech, options.precision, origin, options, options.threads)


if __name__ == "__main__":
    run(main)
