"""Streaming encoders on a device: real-time factor and peak memory by the length of speech, in onnxruntime.

    python -m benchmarks.streaming_encoders --output benchmarks/results/streaming_encoders.md

A Conformer in chunks and TODM's state space encoder, each with CTC, untrained, of about equal parameters, as `export` writes
them.
Each model runs in its own process. All models of a length take turns within a round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from espnet_todm.bench.models.inputs import Utterances, write_inputs
from espnet_todm.bench.models.measure import Process, Target, Times, measure
from espnet_todm.deploy.forms.streaming_ctc import FORM
from espnet_todm.deploy.onnx.export import OPSET, write_graph
from espnet_todm.deploy.onnx.folder import TOKENS
from espnet_todm.deploy.onnx.tokens import tokens_text
from espnet_todm.deploy.runtime.base import ONNXRUNTIME
from espnet_todm.deploy.runtime.fbank import fbank
from espnet_todm.espnet.registry import register
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import write_text
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.optional import package_version
from espnet_todm.util.processor import cpu_model

VOCABULARY = ["<blank>", "<unk>", *(f"▁T{n}" for n in range(497)), "<sos/eos>"]
SHARED = {
    "output_size": 192,
    "num_blocks": 8,
    "input_layer": "conv2d",
    "input_channels": 64,
    "macaron_style": True,
    "use_cnn_module": True,
    "causal": True,
    "cnn_module_kernel": 15,
    "conv_norm": "layer_norm",
}
CONFORMER = {"attention_heads": 4, "pos_enc_layer_type": "rel_pos", "rel_pos_type": "latest", "linear_units": 1024}
STATE_SPACE = {"ssm_heads": 8, "bidirectional": False, "linear_units": 1232}  # within 4% of the Conformer's parameters


@dataclass(frozen=True, eq=False)  # hashed by identity
class Kind:
    """chunk: encoder frames of a chunk and of its left context."""

    name: str
    encoder: str
    options: Mapping[str, Any]
    chunk: tuple[int, int]


KINDS = [
    Kind("Conformer", "todm_conformer", CONFORMER, (16, 64)),
    Kind("Conformer", "todm_conformer", CONFORMER, (4, 64)),
    Kind("state spaces", "todm_mh_ssm", STATE_SPACE, (16, 1)),
    Kind("state spaces", "todm_mh_ssm", STATE_SPACE, (4, 1)),
    Kind("state spaces", "todm_mh_ssm", STATE_SPACE, (1, 1)),
]


def write_model(kind: Kind, folder: Path) -> int:
    """Write the float32 export of an untrained model. Returns its number of parameters."""
    from espnet2.tasks.asr import ASRTask

    folder.mkdir()
    np.savez(folder / "stats.npz", count=100, sum=np.zeros(80), sum_square=np.full(80, 100.0))
    parts = dict.fromkeys(("specaug", "frontend", "decoder", "init", "preencoder", "postencoder", "bpemodel"))
    config = {
        **parts,
        "encoder": kind.encoder,
        "encoder_conf": {**SHARED, **kind.options},
        "model": "todm",
        "model_conf": {"ctc_weight": 1.0},
        "subnet_trainer": "single",
        "subnet_trainer_conf": {"size": "full"},
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "stats.npz")},
        "token_list": VOCABULARY,
        "token_type": "word",
        "input_size": 80,
        "ctc_conf": {},
        "frontend_conf": {},
    }
    model = ASRTask.build_model(argparse.Namespace(**config)).eval()
    exported = FORM.export(model, config, kind.chunk)
    (graph,) = exported.graphs
    write_graph(graph, folder / "model.onnx", OPSET, {}, onnx)
    write_text(folder / TOKENS, tokens_text(exported.tokens))
    return sum(parameter.numel() for parameter in model.parameters())


def measure_length(folders: Mapping[Kind, Path], seconds: float, rounds: int, threads: int) -> dict[Kind, Times]:
    """Time all models on noise of this length, once in each round."""
    samples = np.random.default_rng(0).normal(scale=0.1, size=round(seconds * SAMPLING_RATE)).astype(np.float32)
    targets = {
        kind: Target(kind.name, ONNXRUNTIME, "fp32", threads, folder, (folder / "model.onnx",), 0.0)
        for kind, folder in folders.items()
    }
    with tempfile.TemporaryDirectory() as place:
        inputs = write_inputs(Path(place), Utterances([fbank(samples)], [samples], [seconds]))
        times = measure(list(targets.values()), lambda target: Process(target, inputs["features"]), rounds)
    return {kind: times[target] for kind, target in targets.items()}


def rows(kinds: Mapping[Kind, int], times: Mapping[float, Mapping[Kind, Times]]) -> list[list[str]]:
    cells = []
    for kind, parameters in kinds.items():
        each = [times[seconds][kind] for seconds in times]
        factors = [f"{np.median(t.elapsed[:, 0, 1]) / seconds:.4f}" for seconds, t in zip(times, each)]
        memory = [f"{t.peak_mib - t.runtime_mib:.0f}" for t in each]
        chunks = each[-1].chunks
        assert chunks is not None
        figures = chunks.figures(list(times)[-1:])
        latencies = [f"{figures[f'chunk_p{percent}_ms']:.1f}" for percent in (50, 95)]
        chunk, left = kind.chunk
        heading = [kind.name, f"{parameters / 1e6:.2f}", f"{40 * chunk}", f"{40 * left}" if left > 1 else ""]
        cells.append([*heading, *factors, *memory, *latencies])
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 600.0], help="lengths of speech")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="write the report to this markdown file as well")
    options = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory() as place:
        folders = {kind: Path(place) / f"{number}" for number, kind in enumerate(KINDS)}
        parameters = {kind: write_model(kind, folder) for kind, folder in folders.items()}
        times = {n: measure_length(folders, n, options.rounds, options.threads) for n in options.seconds}
    lengths = [f"{seconds:g} s" for seconds in options.seconds]
    header = ["encoder", "parameters (M)", "chunk (ms)", "left context (ms)"]
    header += [f"RTF, {length}" for length in lengths] + [f"MiB, {length}" for length in lengths]
    table = markdown_table([*header, "chunk p50 (ms)", "chunk p95 (ms)"], rows(parameters, times))
    report = (
        f"# {__doc__.strip().splitlines()[0][:-1]}\n\n{table}\n"
        f"CTC over {len(VOCABULARY)} tokens, float32, noise as speech. RTF: seconds of compute per second of speech, the"
        " median over rounds, without features.\nMiB: peak resident memory above that of the runtime. Chunk: compute of"
        " one chunk, of the longest speech. The features of 600 s take 18 MiB.\n\n"
        f"{cpu_model()}, {options.threads} thread(s), {options.rounds} rounds;"
        f" onnxruntime {package_version('onnxruntime')}; `python -m benchmarks.streaming_encoders`\n"
    )
    print(report)
    if options.output:
        write_text(Path(options.output), report)


if __name__ == "__main__":
    main()
