"""Count the words that an experiment's sizes write where nobody speaks: in silence, noise, hum, tones and knocks.

The report shows what --output has in the experiment's folder. A training hears such sounds with ``nonspeech: made``.

Example: python -m espnet_todm.bin.bench nonspeech --experiment exp/supernet --minutes 10 --precisions fp32 int8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.deploy.onnx.folder import FOLDER, PRECISIONS
from espnet_todm.report.measured import NONSPEECH, NONSPEECH_COLUMNS, records_table
from espnet_todm.util.files import write_json


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with subnets/<size>")
    parser.add_argument("--sizes", nargs="*", default=[], help="default: all that were extracted")
    parser.add_argument("--minutes", type=float, default=10.0, help="of sounds, which are made (default 10)")
    parser.add_argument(
        "--precisions", nargs="*", default=[], choices=list(PRECISIONS), help="of ONNX files, beside PyTorch"
    )
    parser.add_argument("--format", default=FOLDER, help="of the ONNX files: onnx (default) or streaming-onnx")
    parser.add_argument("--output", type=Path, help=f"default: {NONSPEECH} in the experiment's folder")
    options = parser.parse_args(arguments)

    register()
    from espnet_todm.bench.nonspeech import measure_nonspeech

    found = measure_nonspeech(options.experiment, options.minutes, options.sizes, options.precisions, options.format)
    print(records_table(found["results"], NONSPEECH_COLUMNS).markdown())
    write_json(options.output or Path(options.experiment) / NONSPEECH, found)


if __name__ == "__main__":
    run(main)
