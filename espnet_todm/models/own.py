"""What each size owns in a model: an output layer and a joiner (``output_layers: per_size``), norms and branch scales of the
encoder (``own_affine``, ``own_branch_scale``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from espnet_todm.elastic.own import start_as
from espnet_todm.errors import UserError

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

Pairs = list[tuple[nn.Module, nn.Module]]


def own_pairs(model: TodmModel, size: str) -> dict[str, Pairs]:
    """Description -> pairs of a shared module and the one that the size owns."""
    pairs: dict[str, Pairs] = {}
    if size in model.size_outputs:
        pairs[f"the output layer of {size}"] = [(model.ctc.ctc_lo, model.size_outputs[size])]
    if size in model.size_joints:
        pairs[f"the joiner of {size}"] = [(model.joint_network, model.size_joints[size])]
    norms = model.encoder.own_pairs(size)
    return {**pairs, f"each norm of {size}": norms} if norms else pairs


def start_sizes(model: TodmModel, sizes: Iterable[str]) -> None:
    """Set all that these sizes own to the shared values, before the first step that trains them.

    Until then only the shared parameters have learned, and what a size owns would still be untrained.
    """
    for size in sizes:
        for pairs in own_pairs(model, size).values():
            start_from_shared(pairs)
        model.encoder.reset_own(size)


def start_from_shared(pairs: Pairs) -> None:
    """Set the parameters of the second module of each pair to those of the first."""
    for shared, own in pairs:
        start_as(shared, own)


def check_space(model: TodmModel, search_space: object) -> None:
    """Raises UserError if sizes own anything, but all subnets of a step are drawn from a ``search_space``."""
    own = {
        "own_affine and own_branch_scale": list(model.encoder.own),
        "output_layers: per_size": [*model.size_outputs, *model.size_joints],
    }
    for option, sizes in own.items():
        if search_space and len(sizes):
            raise UserError(
                f"search_space: no step trains a named size, so {option} would stay untrained; leave out one of them"
            )
