"""Checks of training options with which ESPnet would crash, not train, or train differently than intended."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from espnet2.train import trainer

from espnet_todm.errors import UserError
from espnet_todm.iterators.nonspeech import check_nonspeech
from espnet_todm.iterators.options import ITERATORS, iterator_options
from espnet_todm.util.checks import check_number

# Option that must not be true -> reason. NEVER is for all models of this package's trainer.
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

ITERATOR_TYPES = ("sequence", "category")
COUNTS = ("accum_grad", "log_interval", "batch_size", "batch_bins", "valid_batch_size", "valid_batch_bins")


def check_training(options: Any) -> None:
    """Check ESPnet's training options before anything is built. Raises UserError."""
    supernet = str(getattr(options, "model", None)).lower() == "todm"
    for name, reason in {**NEVER, **(NEVER_WITH_SUPERNETS if supernet else {})}.items():
        if getattr(options, name, False):
            raise UserError(f"{name}: true is not possible{' with model: todm' if supernet else ''}: {reason}")
    if options.use_wandb and not is_installed("wandb"):
        raise UserError(
            "use_wandb: true needs wandb, which is not installed; pip install wandb, or say use_wandb: false"
        )
    for key in COUNTS:
        if key == "accum_grad" or getattr(options, key) is not None:
            check_number(key, getattr(options, key), at_least=1, whole=True)
    for key in () if options.collect_stats else ("iterator_type", "valid_iterator_type"):
        kind = getattr(options, key, None)
        if kind is not None and kind not in ITERATOR_TYPES:
            why = " (it cuts speech into pieces, but not its text)" if "chunk" in str(kind) else ""
            raise UserError(f"{key}: {kind!r} is not possible{why}; allowed: {', '.join(ITERATOR_TYPES)}")
    if not options.collect_stats:
        _check_iterator(options)
        check_nonspeech(options)
    distributed = options.multiprocessing_distributed or getattr(options, "distributed", False)
    if supernet and options.ngpu > 1 and not distributed:
        raise UserError(
            f"ngpu: {options.ngpu} in one process is not possible with model: todm, whose steps need a process for each GPU;"
            " add --multiprocessing_distributed true"
        )


def _check_iterator(options: Any) -> None:
    """Check ``iterator`` and ``iterator_conf``, of which ESPnet reads the first alone where it is none."""
    if str(getattr(options, "iterator", None)).lower() in ITERATORS:
        iterator_options(options)
    elif getattr(options, "iterator_conf", None):
        raise UserError(f"iterator_conf: {options.iterator_conf} is for iterator: lhotse, but there is no iterator")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def check_frozen(model: torch.nn.Module, frozen: Sequence[str]) -> None:
    """Raises UserError if ``freeze_param`` names an unknown part, or if no parameter is left to train."""
    names = [name for name, _ in model.named_parameters()]
    for part in frozen:
        if not any(name == part or name.startswith(f"{part}.") for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise UserError(f"freeze_param: {part!r} is no part of the model; it has {parts}, and parts of these")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze_param: {', '.join(frozen)}: nothing is left to train")


@contextmanager
def noise_by_step(seed: int) -> Iterator[None]:
    """In this context ``grad_noise`` depends on seed and step, so it is the same on all ranks and after a resume. With
    ESPnet's own noise the weights of the ranks diverge."""
    add: Callable[..., None] = trainer.add_gradient_noise

    def add_by_step(model: torch.nn.Module, iteration: int, *args: Any, **kwargs: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + iteration)  # ESPnet draws on the CPU; GPU generators stay as is
            add(model, iteration, *args, **kwargs)

    with mock.patch.object(trainer, "add_gradient_noise", add_by_step):
        yield
