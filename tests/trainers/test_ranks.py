"""Several ranks with unequal batches train the parameters that one process trains on the joined batches.

Everything is in float64, so that the bound of 1e-6 shows other arithmetic and not other roundings. What ranks cannot
share is off: dropout, SpecAugment, batch norm and layer drop. ``split_batch`` deals the utterances of each rank. Where their
number is a multiple of the subnets, the joined batch is dealt in the same way.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.conftest import transformer
from tests.tiny_model import SIZES, TOKENS, tiny_model
from tests.trainers.epochs import Named, train_epoch

STEPS = 10
UTTERANCES = 12
Parameters = dict[str, Tensor]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, lr=0.002),
    "adamw": partial(torch.optim.AdamW, lr=0.002, weight_decay=0.1),
    "scaledadam": partial(ScaledAdam, lr=0.02, clipping_scale=2.0, clipping_update_period=4),
}
BY_TWO = ((4, 8), (2, 4, 6))  # utterances of each rank
BY_THREE = ((3, 9), (3, 3, 6))
ANY = ((1, 11), (2, 7, 3))
TWO_SIZES = {"small": 0.6, "middle": 0.8}
MORE_SIZES = {**SIZES, "wide": {"depth": 0.67}}


def small(sizes: Any = SIZES, linear_units: int = 64, **options: Any) -> TodmModel:
    """A Transformer of two blocks. ``options``: of :func:`tiny_model`."""
    return tiny_model(supernet=transformer(num_blocks=2, sizes=sizes, linear_units=linear_units), **options)


@dataclass(frozen=True)
class Case:
    """A training. ``conf``: options of the trainer. ``parts``: utterances of each of two and of three ranks."""

    trainer: type[SubnetTrainer]
    conf: dict[str, Any]
    make: Callable[[], TodmModel] = small
    parts: tuple[tuple[int, ...], ...] = ANY

    def model(self) -> TodmModel:
        made = self.make().double().train()
        made.subnet_trainer = self.trainer(made, **self.conf)
        return made.double()


_STAGES = {"stage1_steps": 5, "layer_drop": 0.0, "warmup_steps": 1}
_two_stage = partial(Case, TwoStageTrainer, make=partial(small, sizes=TWO_SIZES))
# With every optimizer.
TRAINERS = {
    "single": Case(SingleTrainer, {"size": "small"}),
    "kd": Case(KDTrainer, {}),
    "kd, split": Case(KDTrainer, {"split_batch": True, "kd_weight": 0.0}, parts=BY_THREE),
    "aux_loss": Case(AuxLossTrainer, {}, partial(small, sizes={"small": {"depth": 0.5, "drop": "last"}})),
    "two_stage": _two_stage(_STAGES),
    "two_stage, split": Case(
        TwoStageTrainer, {**_STAGES, "split_batch": True}, partial(small, sizes={"small": 0.6}), BY_TWO
    ),
}
# With AdamW, which decays parameters that have a gradient of zeros.
OPTIONS = {
    "kd, per size": Case(KDTrainer, {}, partial(small, model={"output_layers": "per_size"}, sizes=MORE_SIZES)),
    "kd, own norms": Case(KDTrainer, {}, partial(tiny_model, own_affine=True, own_branch_scale=1.0, sizes=MORE_SIZES)),
    "kd, attention": Case(KDTrainer, {"kd_start": {"loss_per_label": 9.0}}, partial(small, ctc_weight=0.3)),
    "kd, averaged teacher": Case(KDTrainer, {"teacher": "ema", "join": {"middle": 4}}),
    "two_stage, kd": _two_stage({**_STAGES, "kd_weight": 0.4, "focal_detached": False}),
    "two_stage, top_k": _two_stage({**_STAGES, "selection": "top_k"}),
    "two_stage, zero_out": _two_stage({**_STAGES, "selection": "zero_out"}),
}
RUNS = [(case, optimizer) for case in TRAINERS for optimizer in OPTIMIZERS] + [(case, "adamw") for case in OPTIONS]


def batches(part: slice = slice(None)) -> list[Named]:
    """The batches of a rank: some of the utterances, which are sorted by length."""
    made = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        lengths = torch.randint(30, 60, (UTTERANCES,), generator=generator).sort(descending=True).values
        speech = torch.randn(UTTERANCES, 60, 20, generator=generator, dtype=torch.float64)
        text = torch.randint(2, len(TOKENS) - 1, (UTTERANCES, 5), generator=generator)
        text_lengths = torch.randint(1, 6, (UTTERANCES,), generator=generator)
        text = text.masked_fill(torch.arange(5) >= text_lengths.unsqueeze(1), -1)
        tensors = {"speech": speech, "speech_lengths": lengths, "text": text, "text_lengths": text_lengths}
        names = [f"utt{number}" for number in range(UTTERANCES)]
        made.append((names[part], {name: tensor[part] for name, tensor in tensors.items()}))
    return made


def trained(case: Case, optimizer: str, rank: int = 0, parts: Sequence[int] = ()) -> Parameters:
    """The parameters after STEPS steps of this rank, or of the only process (no ``parts``)."""
    model, part = case.model(), slice(None)
    wrapped: torch.nn.Module = model
    if parts:
        part = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        wrapped = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    with TemporaryDirectory() as folder:
        chosen = OPTIMIZERS[optimizer](wrapped.parameters())
        train_epoch(wrapped, batches(part), chosen, ranks=bool(parts), output_dir=folder)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def find(name: str) -> Case:
    return {**TRAINERS, **OPTIONS}[name]


def work(rank: int, folder: str) -> None:
    """Train all cases with three ranks, then with the first two of them."""
    torch.set_num_threads(1)
    for world in (3, 2):
        if rank < world:
            torch.distributed.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
            found = {run: trained(find(run[0]), run[1], rank, find(run[0]).parts[world - 2]) for run in RUNS}
            torch.save(found, Path(folder) / f"{world}_{rank}.pth")
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    # All ranks are forks of one process that has imported this module.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(work, (str(path),), nprocs=3, start_method="forkserver")
    return path


@pytest.fixture(scope="module")
def of_ranks(folder: Path) -> dict[tuple[int, int], dict[tuple[str, str], Parameters]]:
    """(world, rank) -> its parameters after each run."""
    return {(world, rank): torch.load(folder / f"{world}_{rank}.pth") for world in (2, 3) for rank in range(world)}


@pytest.mark.timeout(3600)  # the first case waits for all ranks
@pytest.mark.parametrize(("case", "optimizer"), RUNS, ids=map(", ".join, RUNS))
def test_ranks_train_what_one_process_trains(case: str, optimizer: str, of_ranks: Any) -> None:
    before = dict(find(case).model().named_parameters())
    alone = trained(find(case), optimizer)
    assert any(not torch.equal(alone[name], before[name]) for name in alone)
    for world in (2, 3):
        first = of_ranks[world, 0][case, optimizer]
        for rank in range(1, world):
            assert all(torch.equal(of_ranks[world, rank][case, optimizer][name], first[name]) for name in first)
        for name, expected in alone.items():
            assert distance(first[name], expected) < 1e-6, f"{world} ranks: {name}"
            if torch.equal(expected, before[name]):  # reached in no step
                assert torch.equal(first[name], expected), f"{world} ranks: {name}"


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9))
