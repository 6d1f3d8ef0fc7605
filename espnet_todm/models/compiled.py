"""``model_conf: {compile: true}``: the blocks of each named size as one graph, by ``torch.compile``.

A graph has the whole width of a size as constants, so a step launches fused kernels instead of one for each operation.
Only passes that repeat are compiled: those of a named size without gates, dropped modules, skipped layers or intermediate
outputs. All others run as they do without this option; random subnets would be compiled again in every step.

The draws of dropout differ from those without the option.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.encoders.depth import WHOLE
from espnet_todm.encoders.passes import SubsampledFeatures, choices
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError, one_line

BACKEND = "inductor"
VARYING = ((0, 1), (1,), (0, 2), (0, 1, 2))  # dimensions of a graph's inputs that differ between batches
Graph = Callable[[Tensor, Optional[Tensor], Tensor, Optional[Tensor]], Tensor]


class CompiledBlocks:
    """The graphs of an encoder's sizes. Each is made when its size runs for the second time: the first pass fills caches,
    which a graph must not change."""

    def __init__(self) -> None:
        if not hasattr(torch, "compile"):
            raise UserError(f"model_conf.compile: true needs torch 2.2 or newer, but this is {torch.__version__}")
        self._seen: dict[
            tuple[str, bool], Subnet
        ] = {}  # by size, and whether with dropout; a trainer may choose it anew
        self._graphs: dict[tuple[str, bool], Graph] = {}
        self._works = False

    def __deepcopy__(self, memo: Any) -> CompiledBlocks:
        return CompiledBlocks()  # graphs hold the modules that they were made of

    def takes(self, encoder: SupernetEncoder, subsampled: SubsampledFeatures, subnet: Subnet) -> bool:
        """Whether a pass without gates, drop and exits repeats. A size's first pass does not count."""
        if encoder.places or subsampled.depth is not WHOLE or subnet.name not in encoder.sizes:
            return False
        key = subnet.name, subsampled.dropout
        if self._seen.get(key) is subnet:
            return True
        if encoder.sizes[subnet.name] == subnet:
            self._seen[key] = subnet
            self._graphs.pop(key, None)
        return False

    def run(self, encoder: SupernetEncoder, subsampled: SubsampledFeatures, subnet: Subnet) -> Tensor:
        """The blocks and the output norm: (B, T, D) -> (B, T, D). Raises UserError where torch cannot compile."""
        key = subnet.name, subsampled.dropout
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _graph(encoder, subnet, subsampled.dropout)
        inputs = subsampled.hidden, subsampled.positions, subsampled.mask, subsampled.visible
        for tensor, dimensions in zip(inputs, VARYING):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, [dim for dim in dimensions if tensor.size(dim) > 1])
        if self._works:
            return graph(*inputs)
        try:
            output = graph(*inputs)
        except _failures() as error:
            raise UserError(
                f"model_conf.compile: true: torch cannot compile here ({one_line(error, 200)}); it needs a C++ compiler on"
                " the CPU and Triton on a GPU; leave the option out to train without"
            ) from error
        self._works = True
        return output


def _graph(encoder: SupernetEncoder, subnet: Subnet, dropout: bool) -> Graph:
    """The function of a size, to be compiled at its first call for each mode and type."""
    pairs = list(zip(encoder.encoders, choices(subnet, encoder.own, len(encoder.encoders), dropout=dropout)))
    name = subnet.name

    def blocks(hidden: Tensor, positions: Optional[Tensor], mask: Tensor, visible: Optional[Tensor]) -> Tensor:
        for block, choice in pairs:
            hidden = block(hidden, positions, mask, choice, visible)
        return encoder.output_norm(hidden, name)

    # torch limits how often it compiles one code object, so each graph has its own.
    own = FunctionType(blocks.__code__.replace(co_name=f"blocks_of_{name}"), globals(), name, None, blocks.__closure__)
    graph: Graph = torch.compile(own, backend=BACKEND)
    return graph


def _failures() -> tuple[type[BaseException], ...]:
    """What torch raises where it cannot compile, by version."""
    from torch._dynamo import exc

    names = ("TorchDynamoException", "BackendCompilerFailed")
    return tuple(getattr(exc, name) for name in names if hasattr(exc, name)) or (RuntimeError,)
