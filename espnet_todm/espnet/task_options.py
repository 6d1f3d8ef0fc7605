"""Options of ESPnet's training that would end in a traceback, in no training or in another one than meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from espnet2.train import trainer

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number

# Options that cannot be true, and why: for every model that this package's trainer trains, and for a supernet.
NEVER = {"use_deepspeed": "ESPnet has it for its own trainer alone; train with DistributedDataParallel"}
_NO_ADAPTERS = (
    "a supernet's layers run as slices of their weights, and an adapter beside them would never run; extract a size and"
    " adapt that, or freeze parts with freeze_param"
)
NEVER_WITH_SUPERNETS = {
    "sharded_ddp": "a supernet's components are sorted in training, the optimizer's state with them, and shards of it"
    " cannot be; train with DistributedDataParallel",
    "use_adapter": _NO_ADAPTERS,
    "use_lora": _NO_ADAPTERS,  # ESPnet 202402's name for one kind of it
}


def check_training(options: Any) -> None:
    """Called before anything is built. Raises UserError."""
    supernet = str(getattr(options, "model", None)).lower() == "todm"
    for name, reason in {**NEVER, **(NEVER_WITH_SUPERNETS if supernet else {})}.items():
        if getattr(options, name, False):
            raise UserError(f"{name}: true is not possible{' with model: todm' if supernet else ''}: {reason}")
    check_number("accum_grad", options.accum_grad, at_least=1, whole=True)
    if options.log_interval is not None:
        check_number("log_interval", options.log_interval, at_least=1, whole=True)
    distributed = options.multiprocessing_distributed or getattr(options, "distributed", False)
    if supernet and options.ngpu > 1 and not distributed:
        raise UserError(
            f"ngpu: {options.ngpu} in one process is not possible with model: todm, whose steps need a process for each GPU;"
            " add --multiprocessing_distributed true"
        )


def check_frozen(model: torch.nn.Module, frozen: Sequence[str]) -> None:
    """Raises UserError when ``freeze_param`` names what is not there, or leaves nothing to train."""
    names = [name for name, _ in model.named_parameters()]
    for part in frozen:
        if not any(name == part or name.startswith(f"{part}.") for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise UserError(f"freeze_param: {part!r} is no part of the model; it has {parts}, and parts of these")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze_param: {', '.join(frozen)}: nothing is left to train")


@contextmanager
def noise_by_step(seed: int) -> Iterator[None]:
    """Within this context ``grad_noise`` is drawn by seed and step: the same on all ranks, whose weights ESPnet would let
    drift apart, and after a resume."""
    add: Callable[..., None] = trainer.add_gradient_noise

    def add_by_step(model: torch.nn.Module, iteration: int, *args: Any, **kwargs: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + iteration)  # ESPnet draws on the CPU; GPUs keep their states
            add(model, iteration, *args, **kwargs)

    with mock.patch.object(trainer, "add_gradient_noise", add_by_step):
        yield
