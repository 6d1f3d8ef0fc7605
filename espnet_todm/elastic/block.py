"""A block of elastic modules. A module that keeps nothing is skipped; an empty block is the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Optional

import torch
from torch import Tensor, nn

from espnet_todm.components import FULL, Component, Cost, Key
from espnet_todm.elastic.base import Context, ElasticModule, any_open
from espnet_todm.elastic.own import OwnBlock

LAYER_NORM_EPS = 1e-12  # ESPnet's

Activation = Literal["swish", "relu", "gelu", "tanh", "hardtanh", "selu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "swish": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "selu": nn.SELU,
}


class Slot(NamedTuple):
    """A module in a block: its name, the kind of its components, and the name of the norm before it."""

    name: str
    kind: str
    norm: str


@dataclass(frozen=True)
class LayerChoice:
    """What runs in one block: ``kept`` has keep indices per module, ``gates`` (components,) per module; everything runs
    if both are None. ``drop`` has the probability per module with which a training pass skips it for an utterance
    (stochastic depth). ``scale`` multiplies the output of each module before it is added. ``size`` names the subnet,
    which selects its batch norm statistics. ``own``: the parameters that the subnet owns in this block, if any.
    ``dropout``: false turns dropout off in a training pass.
    """

    kept: Optional[Mapping[str, tuple[int, ...]]] = None
    gates: Optional[Mapping[str, Tensor]] = None
    drop: Mapping[str, float] = field(default_factory=dict)
    size: str = FULL
    scale: float = 1.0
    own: Optional[OwnBlock] = None
    dropout: bool = True

    def keeps(self, name: str) -> bool:
        """Whether the module ``name`` runs."""
        return self.kept is None or len(self.kept.get(name, ())) > 0


class ElasticBlock(nn.Module):
    """Residual modules with a norm before each, and a norm at the end. Subclasses define the modules. They override
    ``run`` if the modules do not run one after the other.

    Args:
        modules: the modules of the block, in the order of their parameters.
        dropout: on the output of each module.
        ff_scale: factor on the outputs of feed-forward modules (kind "ffn").
        final_norm: whether the block ends with a norm.
        order: names of modules in the order in which they run, default that of ``modules``.
    """

    def __init__(
        self,
        size: int,
        modules: Mapping[Slot, ElasticModule],
        dropout: float,
        ff_scale: float = 1.0,
        final_norm: bool = True,
        order: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.order = sorted(modules, key=lambda slot: order.index(slot.name)) if order else list(modules)
        self.ff_scale = ff_scale
        self.dropout = nn.Dropout(dropout)
        for slot, module in modules.items():
            self.add_module(slot.name, module)
        for slot in modules:
            self.add_module(slot.norm, nn.LayerNorm(size, eps=LAYER_NORM_EPS))
        if final_norm:
            self.norm_final = nn.LayerNorm(size, eps=LAYER_NORM_EPS)

    def elastic_modules(self) -> list[tuple[str, str, ElasticModule]]:
        """(name, kind, module) of the modules of this block, in the order in which they run."""
        return [(slot.name, slot.kind, getattr(self, slot.name)) for slot in self.order]

    def forward(
        self,
        x: Tensor,
        positions: Optional[Tensor],
        mask: Tensor,
        choice: LayerChoice,
        visible: Optional[Tensor] = None,
    ) -> Tensor:
        """x (B, T, D), positions (1, 2T-1, D) or None, mask (B, 1, T), visible (B, T, T) or None -> (B, T, D)."""
        running = [slot for slot in self.order if choice.keeps(slot.name)]
        if not running:
            return x
        context = Context(positions, mask, choice.size, visible, dropout=choice.dropout)
        changed = self.run(x, running, choice, context)
        if not hasattr(self, "norm_final"):
            return changed
        final = self.normed("norm_final", changed, choice.own)
        if choice.gates is None:
            return final
        return torch.lerp(x.to(final.dtype), final, any_open(torch.cat(list(choice.gates.values()))))

    def run(self, x: Tensor, running: Sequence[Slot], choice: LayerChoice, context: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D): the running modules one after the other, each with a residual connection."""
        for slot in running:
            branch = self.dropped(self.branch(x, slot, choice, context), context)
            x = x + scaled(self.stochastic_depth(branch, choice.drop.get(slot.name, 0.0)), choice.scale)
        return x

    def branch(self, x: Tensor, slot: Slot, choice: LayerChoice, context: Context) -> Tensor:
        """scale * module(norm(x)), (B, T, D) -> (B, T, D)."""
        module: ElasticModule = getattr(self, slot.name)
        kept = None if choice.kept is None else choice.kept[slot.name]
        if kept is not None and len(kept) == module.components:
            kept = None
        gates = None if choice.gates is None else choice.gates[slot.name]
        if choice.own is not None:
            context = context._replace(own_norm=choice.own.norm(f"{slot.name}.{module.norm_name}"))
        output = module.run(self.normed(slot.norm, x, choice.own), context, kept, gates)
        if choice.own is not None:
            output = choice.own.scaled(slot.name, output)
        return self.ff_scale * output if slot.kind == "ffn" else output

    def dropped(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, D) after dropout."""
        result: Tensor = self.dropout(x) if context.dropout else x
        return result

    def normed(self, name: str, x: Tensor, own: Optional[OwnBlock]) -> Tensor:
        """x (B, T, D) after the norm ``name`` of the block, or after that of ``own`` in its place."""
        norm = own.norm(name) if own is not None else None
        result: Tensor = (getattr(self, name) if norm is None else norm)(x)
        return result

    def stochastic_depth(self, branch: Tensor, rate: float) -> Tensor:
        """branch (B, T, D) with some utterances set to zero; the others are scaled up, so that the expectation stays
        the same.
        """
        if not (self.training and rate):
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= rate
        return branch * (keep / (1 - rate)).to(branch.dtype)

    def components(self, layer: int, frames: int, per_second: float) -> list[Component]:
        """The components of this block with their costs on ``frames`` frames, FLOPs times ``per_second``."""
        return [
            Component(
                Key(layer, name, index),
                kind,
                Cost(module.params_per_component(), module.flops(frames) / module.components * per_second),
            )
            for name, kind, module in self.elastic_modules()
            for index in range(module.components)
        ]

    def module_costs(self, frames: int, per_second: float) -> dict[str, Cost]:
        """The cost of each module besides its components: the norm before it and its uncut parameters. Norms and biases
        have no FLOPs; a subclass adds other costs.
        """
        del frames, per_second
        return {
            slot.name: Cost(getattr(self, slot.name).params_shared() + count_parameters(getattr(self, slot.norm)))
            for slot in self.order
        }

    def layer_cost(self) -> Cost:
        """The cost of the block besides its modules, if any of them runs."""
        return Cost(count_parameters(self.norm_final) if hasattr(self, "norm_final") else 0)

    def extracted_state(self, modules: Mapping[str, tuple[int, ...]], size: str) -> dict[str, Tensor]:
        """State dict of the small block that keeps these components of each module."""
        state: dict[str, Tensor] = {}
        for name, _, norm in self.order:
            if modules.get(name):
                state.update(_prefixed(name, getattr(self, name).sliced_state(modules[name], size)))
                state.update(_prefixed(norm, getattr(self, norm).state_dict()))
        if hasattr(self, "norm_final"):
            state.update(_prefixed("norm_final", self.norm_final.state_dict()))
        return state


def scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else factor * x


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _prefixed(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for key, value in state.items()}
