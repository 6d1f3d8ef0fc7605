"""``--init_param`` for models whose sizes own parameters: each size starts from the file's shared ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from espnet_todm.models.own import own_pairs, start_from_shared
from espnet_todm.models.todm import TodmModel

State = dict[str, Tensor]


def filling_sizes(load: Callable[..., None]) -> Callable[..., None]:
    """Wrap ESPnet's ``load_pretrained_model``. If the file has only the shared output layer, joiner or norms, they are
    copied to each size's own. Otherwise these would keep their first values, beside a trained model."""

    @wraps(load)
    def load_and_fill(init_param: str, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        before = [(_state(shared), _state(own)) for _, shared, own in _pairs(model)]
        load(init_param, model, *args, **kwargs)
        told: dict[str, None] = {}
        for (name, shared, own), (shared_before, own_before) in zip(_pairs(model), before):
            if not _same(_state(shared), shared_before) and _same(_state(own), own_before):
                start_from_shared([(shared, own)])
                told[name] = None
        for name in told:
            logging.info("%s: %s starts as the shared one", init_param, name)

    return load_and_fill


def _pairs(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield (name, shared module, the size's own module)."""
    if not isinstance(model, TodmModel):
        return
    for size in model.encoder.sizes:
        for name, pairs in own_pairs(model, size).items():
            yield from ((name, shared, own) for shared, own in pairs)


def _state(module: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _same(state: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in state.items())
