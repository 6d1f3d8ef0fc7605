"""Measure an experiment's exported models on this machine: real-time factor, latency, peak memory, file size.

Every size of an experiment takes turns with the others in each runtime; PyTorch runs in fp32 alone. sherpa-onnx computes
features itself, so its times hold them; those of the other runtimes do not. Streaming exports are timed chunk by chunk with
--format streaming-onnx.

Example: python -m espnet_todm.bin.bench models --experiment exp/supernet --scp data/test/wav.scp --output model_latency.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run
from espnet_todm.deploy.forms.registry import FORMATS
from espnet_todm.deploy.onnx.folder import PRECISIONS
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, RUNTIMES, SHERPA
from espnet_todm.errors import UserError
from espnet_todm.util.files import write_json

parser = Parser(__doc__)
parser.add_argument("--experiment", required=True, help="folder with subnets/<size> and subnets/<size>/onnx")
parser.add_argument(
    "--scp", required=True, help="wav.scp with the speech to time, 16 kHz; feats.scp without sherpa-onnx"
)
parser.add_argument("--output", required=True, help="JSON file to write")
parser.add_argument("--sizes", nargs="*", default=[], help="sizes to measure; default all that were extracted")
parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=[ONNXRUNTIME, SHERPA])
parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "int8"])
parser.add_argument("--threads", nargs="+", type=int, default=[1], help="numbers of threads, such as 1 2 (default 1)")
parser.add_argument(
    "--format",
    choices=FORMATS,
    default=FORMATS[0],
    help="which exports: of whole utterances (onnx, default), or streaming-onnx, whose chunks are timed too",
)
parser.add_argument("--utterances", type=int, default=10, help="how many utterances (default 10)")
parser.add_argument("--rounds", type=int, default=20, help="how often all are timed (default 20)")
parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def main(arguments: Sequence[str]) -> None:
    from espnet_todm.bench.models.inputs import read_utterances, write_inputs
    from espnet_todm.bench.models.measure import Process, find_targets, measure
    from espnet_todm.bench.models.table import FORMAT, describe_machine, load_average, results, table

    options = parser.parse_args(arguments)
    if Path(options.output).exists() and not options.overwrite:
        raise UserError(f"--output: {options.output} exists; give another name or --overwrite")

    settings = options.runtimes, options.precisions, options.threads
    targets = find_targets(options.experiment, options.sizes, *settings, options.format)
    utterances = read_utterances(options.scp, options.utterances, audio=SHERPA in options.runtimes)
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        files = write_inputs(Path(folder), utterances)
        times = measure(targets, lambda target: Process(target, files[target.input]), options.rounds)
    measured = results(times, utterances.seconds)
    told = {
        "graphs": options.format,
        "utterances": len(utterances.seconds),
        "seconds": sum(utterances.seconds),
        "rounds": options.rounds,
    }
    machine = describe_machine(load)
    write_json(options.output, {"format": FORMAT, "machine": machine, **told, "results": measured})
    print(table(measured))
    print(
        f"{options.output}: {told['utterances']} utterances, {told['seconds']:.0f} s, {options.rounds} rounds on"
        f" {machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} to {machine['load_after']}"
    )


if __name__ == "__main__":
    run(main)
