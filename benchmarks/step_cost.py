"""Time and memory of a supernet's training step against training one model, on a Conformer of about 7M parameters.

    python benchmarks/step_cost.py --output benchmarks/results/step_cost.md

Each step trains the subnets of a method: max, middle and min size as slices (kd, the second stage of OrthoSoftmax), or
the max size and a gated pass at its full width (the first stage). It may cost at most --limit times what its parts cost
alone, (F + sum E_i) (see espnet_todm/bench/step_cost.py), and at most --limit times one model's peak memory; else status 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr_transducer.joint_network import JointNetwork

from espnet_todm.bench.step_cost import (
    SINGLE,
    SUPERNET,
    Memory,
    Round,
    Workload,
    measure_rounds,
    peak_memory,
    random_batch,
    summary,
)
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.models.todm import TodmModel
from espnet_todm.report.environment import cpu_model
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.files import write_text

VOCABULARY = 500
PREDICTOR = 256  # width of the transducer's predictor and joiner
FIXED = {"middle": {"depth": 0.75, "ffn": 0.75}, "min": {"depth": 0.5, "ffn": 0.5, "heads": 0.5}}
SHARES = {"middle": 0.72, "min": 0.45}


@dataclass(frozen=True)
class Method:
    """What a step does, and ``step``, the one to measure (None: the usual one). ``transducer``: options of a pruned
    transducer in place of CTC."""

    trainer: type[SubnetTrainer]
    options: Mapping[str, Any]
    sizes: Mapping[str, Any]
    step: Optional[int] = None
    transducer: Optional[Mapping[str, Any]] = None


TEACH, ALONE, OWN = {"kd_weight": 0.5}, {"kd_weight": 0.0}, {"reuse_ranges": False}
METHODS = {
    "kd": Method(KDTrainer, TEACH, FIXED),
    "kd_without_distillation": Method(KDTrainer, ALONE, FIXED),
    "ortho_softmax_stage_1": Method(TwoStageTrainer, {"stage1_steps": 10**6}, SHARES, 1),
    "ortho_softmax_stage_2": Method(TwoStageTrainer, {"stage1_steps": 0}, SHARES),
    "rnnt": Method(KDTrainer, TEACH, FIXED, transducer={}),
    "rnnt_own_ranges": Method(KDTrainer, TEACH, FIXED, transducer=OWN),
    "rnnt_without_distillation": Method(KDTrainer, ALONE, FIXED, transducer={}),
    "rnnt_without_distillation_own_ranges": Method(KDTrainer, ALONE, FIXED, transducer=OWN),
}


def toy(utterances: int, seconds: float, method: str, device: str) -> Workload:
    """12 blocks of 144 channels, 500 BPE units, CTC or a pruned transducer; stochastic parts (dropout) as in training."""
    chosen = METHODS[method]
    torch.manual_seed(0)
    encoder = TodmConformerEncoder(
        80,
        output_size=144,
        attention_heads=4,
        linear_units=576,
        num_blocks=12,
        macaron_style=True,
        rel_pos_type="latest",
        cnn_module_kernel=31,
        sizes=chosen.sizes,
    )
    parts: dict[str, Any] = dict.fromkeys(
        ("frontend", "specaug", "normalize", "preencoder", "postencoder", "decoder", "joint_network")
    )
    if chosen.transducer is not None:
        parts["decoder"] = StatelessDecoder(VOCABULARY, hidden_size=PREDICTOR)
        parts["joint_network"] = JointNetwork(VOCABULARY, 144, PREDICTOR, joint_space_size=PREDICTOR)
        parts["transducer_conf"] = {"prune_range": 5, **chosen.transducer}
    model = TodmModel(
        vocab_size=VOCABULARY,
        token_list=[str(token) for token in range(VOCABULARY)],
        encoder=encoder,
        ctc=CTC(VOCABULARY, 144),
        ctc_weight=1.0 if chosen.transducer is None else 0.0,
        **parts,
    ).to(device)
    model.subnet_trainer = chosen.trainer(model, **chosen.options).to(device)
    return Workload(model, random_batch(VOCABULARY, 80, utterances, seconds, device), chosen.step)


def time_table(rounds: list[Round], names: list[str]) -> str:
    """Median milliseconds of each part, and the ratios, whose medians are taken over rounds."""
    rows = [("shared part alone (F)", [r.front for r in rounds])]
    rows += [(f"{name}, extracted (F + E)", [r.extracted[i] for r in rounds]) for i, name in enumerate(names)]
    rows += [
        ("its parts alone (F + sum E)", [r.lower for r in rounds]),
        ("supernet step", [r.supernet for r in rounds]),
    ]
    lines = ["| step | ms (median) | ms (fastest) |", "| --- | --- | --- |"]
    lines += [f"| {name} | {1e3 * statistics.median(ms):.0f} | {1e3 * min(ms):.0f} |" for name, ms in rows]
    return "\n".join(lines)


def memory_table(memory: dict[str, list[Memory]]) -> str:
    lines = ["| training | MiB before the first step | peak MiB | of all processes |", "| --- | --- | --- | --- |"]
    for mode, values in memory.items():
        every = ", ".join(f"{m.peak:.0f}" for m in values)
        before, peak = (statistics.median(getattr(m, key) for m in values) for key in ("before", "peak"))
        lines.append(f"| {mode} | {before:.0f} | {peak:.0f} | {every} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3, help="for peak memory, of each kind")
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each utterance")
    parser.add_argument("--method", choices=METHODS, default="kd", help="what the step does (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--limit", type=float, default=1.05)
    parser.add_argument("--output", help="write the report to this markdown file as well")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    build = partial(toy, options.utterances, options.seconds, options.method, options.device)
    memory = {m: [peak_memory(build, m) for _ in range(options.processes)] for m in (SINGLE, SUPERNET)}
    workload = build()
    rounds = measure_rounds(workload, options.rounds)
    result = summary(rounds)
    names = [subnet.name for subnet in workload.model.subnet_trainer.picked(workload.first_step())]
    peaks = {mode: statistics.median(m.peak for m in values) for mode, values in memory.items()}
    more_memory = peaks[SUPERNET] / peaks[SINGLE]
    cuda = options.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{cpu_model()}, {options.threads} thread(s)"
    counted = "memory allocated to tensors" if cuda else "resident memory of a whole process, libraries included"
    millions = sum(parameter.numel() for parameter in workload.model.parameters()) / 1e6
    report = f"""# One training step ({options.method}), Conformer with {millions:.2f}M parameters, {" + ".join(names)}

{time_table(rounds, names)}

- cost factor against one model of the full size: **{result["factor"]:.2f}**
- its bound (F + sum E) / (F + E_max): {result["bound"]:.2f}
- supernet step / (F + sum E): **{result["factor_to_bound"]:.3f}**, at most {options.limit} allowed
- peak memory against one model: **{more_memory:.3f}**, at most {options.limit} allowed

{memory_table(memory)}

Steps are forward and backward, without the optimizer's. Ratios are medians over {options.rounds} rounds in which all take
turns. Memory is the peak {counted}; each value comes from a process
that does nothing else; medians of {options.processes}. Batch: {options.utterances} utterances of {options.seconds:g} s.

{where}; torch {torch.__version__}; `python benchmarks/step_cost.py {" ".join(sys.argv[1:])}`
"""
    print(report, end="")
    if options.output:
        write_text(options.output, report)
    if max(result["factor_to_bound"], more_memory) > options.limit:
        sys.exit(f"the step costs more than {options.limit} times its bound in time or memory")


if __name__ == "__main__":
    main()
