"""Time and peak memory of a supernet's training step, relative to a training step of one full model.

F is the time of the part that all subnets share (features, subsampling). E_i is the additional time of subnet i. A training
step of an extracted model takes F + E_i. A step over several subnets takes at least F + sum E_i, a step of the full model
F + E_max. The lower bound of the cost factor is therefore (F + sum E_i) / (F + E_max). With ``split_batch``, each of n
subnets runs on the n-th part of the batch, and the bound has the mean of E_i instead of the sum.

A step here is forward and backward. The optimizer's step is left out: it is the same for both, and would only move the
factor towards 1.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional
from unittest import mock

import torch

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, SAMPLING_RATE
from espnet_todm.util.memory import MIB
from espnet_todm.util.memory import peak_memory as peak_of_process

if TYPE_CHECKING:
    from espnet_todm.components import Key, Subnet
    from espnet_todm.models.batch import Batch
    from espnet_todm.models.todm import TodmModel

TOKENS_PER_SECOND = 3  # approximate rate of BPE units in English
SINGLE, SUPERNET = "single", "supernet"


@dataclass(frozen=True)
class Workload:
    """A model and the batch on which it is measured. Subprocesses receive functions that build a ``Workload``.

    ``step``: the first training step to measure. None means a step of the longest phase of the training.
    """

    model: TodmModel
    batch: Batch
    step: Optional[int] = None

    def first_step(self) -> int:
        """Number of the first step to measure. Prepares the model for this step."""
        if self.step is not None or self.model.subnet_trainer is None:
            return self.step or 0
        return list(self.model.subnet_trainer.walk_through(self.model))[-1]


Build = Callable[[], Workload]


@dataclass(frozen=True)
class Round:
    """Seconds of one round: the shared part, a step of each extracted subnet (full one first), and a supernet step.

    ``split``: each subnet of the supernet step has an equal part of the batch.
    """

    front: float
    extracted: tuple[float, ...]
    supernet: float
    split: bool = False

    @property
    def single(self) -> float:
        """F + E_max."""
        return self.extracted[0]

    @property
    def lower(self) -> float:
        """F + sum E_i, or F + mean E_i with ``split``."""
        own = [step - self.front for step in self.extracted]
        return self.front + (statistics.fmean(own) if self.split else sum(own))


@dataclass(frozen=True)
class Memory:
    """Memory in MiB before the first step, and the peak over steps: resident set size, or allocated tensors on CUDA."""

    before: float
    peak: float


def random_batch(
    vocabulary: int, input_size: Optional[int], utterances: int, seconds: float, device: str = "cpu"
) -> Batch:
    """Random speech and text of equal lengths: features (B, T, input_size), or samples (B, N) if ``input_size`` is None."""
    from espnet_todm.models.batch import Batch

    generator = torch.Generator().manual_seed(0)
    frames = int(seconds * (FRAMES_PER_SECOND if input_size else SAMPLING_RATE))
    tokens = max(1, int(seconds * TOKENS_PER_SECOND))
    speech = torch.randn(utterances, frames, *([input_size] if input_size else []), generator=generator)
    text = torch.randint(1, vocabulary - 1, (utterances, tokens), generator=generator)
    lengths = [torch.full((utterances,), n) for n in (frames, tokens)]
    return Batch(speech.to(device), lengths[0].to(device), text.to(device), lengths[1].to(device))


def extracted_model(model: TodmModel, subnet: Subnet) -> TodmModel:
    """The subnet as an extracted model with its own copy of the parameters."""
    # ESPnet's attention keeps its last weights, which are part of a graph and cannot be copied.
    for module in model.modules():
        if isinstance(getattr(module, "attn", None), torch.Tensor):
            module.attn = None
    small = copy.deepcopy(model)
    small.encoder = model.encoder.extract(subnet).to(next(model.parameters()).device)
    return small


def plain_step(model: TodmModel, batch: Batch, step: int) -> None:
    """Forward and backward of one ordinary model in one autograd graph, as in ESPnet."""
    batch = replace(batch, context=model.context(step))
    model.run_subnet(model.run_subsampling(batch), batch, model.encoder.subnet).loss.backward()


def front_step(model: TodmModel, batch: Batch, step: int) -> None:
    """Forward and backward of the shared part only."""
    hidden = model.run_subsampling(replace(batch, context=model.context(step))).hidden
    if hidden.requires_grad:
        hidden.backward(torch.ones_like(hidden))


def supernet_step(model: TodmModel, batch: Batch, step: int) -> None:
    """Forward and backward of training step ``step`` with the subnet trainer."""
    model(batch.speech, batch.speech_lengths, batch.text, batch.text_lengths, step=step)[0].sum().backward()


def measure_rounds(workload: Workload, rounds: int) -> list[Round]:
    """Time ``rounds`` supernet steps and, in the same round, a step of each extracted model of the subnets it trains.

    Each round runs all of them, so that other load on the machine affects them equally. One more round at the start is
    discarded. Raises UserError if the model has no subnet trainer or does not train the full size.
    """
    model, batch = workload.model.train(), workload.batch
    if model.subnet_trainer is None:
        raise UserError("step cost: the model has no subnet_trainer; set subnet_trainer: kd")
    small: dict[frozenset[Key], TodmModel] = {}
    measured = []
    start = workload.first_step()
    for step in (start, *range(start, start + rounds)):
        subnets = model.subnet_trainer.picked(step)
        if subnets[0] != model.encoder.component_table().full():
            raise UserError(f"step cost: the first subnet of a step must be the full one, not {subnets[0].name!r}")
        small = {s.components: small.get(s.components) or extracted_model(model, s) for s in subnets}
        alone = [small[s.components] for s in subnets]
        subsampled = _seconds(alone[0], partial(front_step, alone[0], batch, step))
        extracted = tuple(_seconds(m, partial(plain_step, m, batch, step)) for m in alone)
        together = _seconds(model, partial(supernet_step, model, batch, step))
        measured.append(Round(subsampled, extracted, together, model.subnet_trainer.split_batch))
        logging.info("step %d: one model %.3f s, supernet %.3f s", step, extracted[0], measured[-1].supernet)
    return measured[1:]


def peak_memory(build: Build, mode: str, steps: int = 3) -> Memory:
    """Peak memory of ``steps`` steps in a subprocess. ``build`` is pickled. ``mode`` is SINGLE or SUPERNET."""
    return in_own_process(_steps_in_child, build, mode, steps, torch.get_num_threads())


def in_own_process(function: Callable[..., Memory], *arguments: Any) -> Memory:
    """Run ``function(*arguments)`` in a new subprocess, so that its memory can be measured. Both are pickled."""
    # By default glibc keeps a varying part of the freed memory, and equal runs differ by 10%.
    steady = mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**18)})
    with steady, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def summary(rounds: Sequence[Round], memory: Optional[dict[str, Memory]] = None) -> dict[str, Any]:
    """The content of cost.json: medians over rounds. ``factor`` and ``bound`` are medians of the ratios of the rounds."""
    result: dict[str, Any] = {
        "factor": statistics.median(r.supernet / r.single for r in rounds),
        "bound": statistics.median(r.lower / r.single for r in rounds),
        "factor_to_bound": statistics.median(r.supernet / r.lower for r in rounds),
        "single_step_seconds": statistics.median(r.single for r in rounds),
        "supernet_step_seconds": statistics.median(r.supernet for r in rounds),
        "rounds": len(rounds),
    }
    if memory:
        result["peak_memory_mib"] = {mode: round(value.peak, 1) for mode, value in memory.items()}
    return result


def workload_of_config(config: str, utterances: int, seconds: float, device: str = "cpu") -> Workload:
    """The model of a training's config.yaml with random weights, and ``utterances`` utterances of random speech.

    Raises UserError if the file is missing or describes no supernet.
    """
    from espnet2.tasks.asr import ASRTask

    from espnet_todm.models.todm import TodmModel

    if not Path(config).is_file():
        raise UserError(f"{config}: no such file")
    model, arguments = ASRTask.build_model_from_file(config, device=device)
    if not isinstance(model, TodmModel):
        raise UserError(f"{config}: describes no supernet; it needs model: todm")
    return Workload(model, random_batch(model.vocab_size, arguments.input_size, utterances, seconds, device))


def _seconds(model: TodmModel, step: Callable[[], None]) -> float:
    """Wall-clock seconds of one step. Gradients are None before the step, as after ``zero_grad``."""
    model.zero_grad(set_to_none=True)
    _wait(model)
    start = time.perf_counter()
    step()
    _wait(model)
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def _wait(model: TodmModel) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def _steps_in_child(build: Build, mode: str, steps: int, threads: int) -> Memory:
    torch.set_num_threads(threads)
    return steps_memory(build, mode, steps)


def steps_memory(build: Build, mode: str, steps: int = 3) -> Memory:
    """Peak memory of ``steps`` steps in this process. It is exact on a GPU: only what tensors hold from now on counts."""
    workload = build()
    model, batch = workload.model.train(), workload.batch
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = memory_mib(on_gpu)
    start = workload.first_step()
    for step in range(start, start + steps):
        model.zero_grad(set_to_none=True)
        supernet_step(model, batch, step) if mode == SUPERNET else plain_step(model, batch, step)
    return Memory(before, memory_mib(on_gpu))


def memory_mib(on_gpu: bool) -> float:
    """Peak memory so far in MiB: of the process, or of the tensors allocated on the GPU."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / MIB
    return peak_of_process()
