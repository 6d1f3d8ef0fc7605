"""``--init_param`` for models with an output layer per size: each size starts from the file's shared output layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from espnet_todm.models.todm import TodmModel

State = dict[str, Tensor]


def filling_sizes(load: Callable[..., None]) -> Callable[..., None]:
    """Wrap ESPnet's ``load_pretrained_model``. If the file has only the shared output layer or joiner, it is copied to each
    size's own. Otherwise these would keep random weights, behind a trained encoder."""

    @wraps(load)
    def load_and_fill(init_param: str, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        before = [(_state(shared), _state(own)) for _, shared, own in _pairs(model)]
        load(init_param, model, *args, **kwargs)
        for (name, shared, own), (shared_before, own_before) in zip(_pairs(model), before):
            if not _same(_state(shared), shared_before) and _same(_state(own), own_before):
                own.load_state_dict(shared.state_dict())
                logging.info("%s: %s starts as the shared one", init_param, name)

    return load_and_fill


def _pairs(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield (name, shared module, the size's own module)."""
    if not isinstance(model, TodmModel):
        return
    for size, own in model.size_outputs.items():
        yield f"the output layer of {size}", model.ctc.ctc_lo, own
    for size, own in model.size_joints.items():
        yield f"the joiner of {size}", model.joint_network, own


def _state(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(state: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in state.items())
