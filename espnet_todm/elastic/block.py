"""One Conformer block made of elastic modules: one that keeps nothing is skipped, an empty block is the identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn

from espnet_todm.components import FULL, Component, Cost, Key
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import ElasticModule, any_open
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.elastic.feed_forward import ElasticFeedForward

LAYER_NORM_EPS = 1e-12  # ESPnet's


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block and the number of components each is cut into; 0 components: the module is not there."""

    macaron_ffn: int
    macaron_chunks: int
    heads: int
    conv: int
    conv_groups: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class BlockConf:
    """What all blocks of an encoder share."""

    size: int
    head_dim: int
    kernel: int
    relative: bool
    macaron: bool
    convolution: bool
    conv_norm: str
    activation: str
    dropout: float
    attention_dropout: float
    adaptive_dropout: bool
    convolution_first: bool = False  # the convolution before the attention, as in OrthoSoftmax; ESPnet has it after


@dataclass(frozen=True)
class LayerChoice:
    """What runs in one block: ``kept`` indices per module, or ``gates`` (components,) per module, or all when both are
    None. ``drop`` has modules that a training pass leaves out of each utterance with a probability of their own (stochastic
    depth). ``size`` names the subnet, for statistics that a named size owns."""

    kept: Optional[Mapping[str, tuple[int, ...]]] = None
    gates: Optional[Mapping[str, Tensor]] = None
    drop: Mapping[str, float] = field(default_factory=dict)
    size: str = FULL


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "swish": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "selu": nn.SELU,
}

# Modules in ESPnet's order: name, kind of its components, name of the norm before it.
MODULES = (
    ("feed_forward_macaron", "ffn", "norm_ff_macaron"),
    ("self_attn", "heads", "norm_mha"),
    ("conv_module", "conv", "norm_conv"),
    ("feed_forward", "ffn", "norm_ff"),
)
_NORM_OF = {name: norm for name, _, norm in MODULES}


class ElasticConformerBlock(nn.Module):
    """Macaron FFN - attention - convolution - FFN - norm, pre-norm, names as in ESPnet's conformer EncoderLayer.

    With ``convolution_first`` attention and convolution change places.
    """

    def __init__(self, conf: BlockConf, shape: BlockShape, sizes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.order = [MODULES[i] for i in ((0, 2, 1, 3) if conf.convolution_first else (0, 1, 2, 3))]
        self.ff_scale = 0.5 if conf.macaron else 1.0
        self.dropout = nn.Dropout(conf.dropout)
        activation = ACTIVATIONS[conf.activation]()
        ffn = (conf.dropout, activation, conf.adaptive_dropout)
        if shape.macaron_chunks:
            self.feed_forward_macaron = ElasticFeedForward(conf.size, shape.macaron_ffn, shape.macaron_chunks, *ffn)
        if shape.heads:
            self.self_attn = ElasticAttention(
                conf.size, shape.heads, conf.head_dim, conf.attention_dropout, conf.relative
            )
        if shape.conv_groups:
            self.conv_module = ElasticConvolution(
                conf.size, shape.conv, shape.conv_groups, conf.kernel, conf.conv_norm, activation, sizes
            )
        if shape.ffn_chunks:
            self.feed_forward = ElasticFeedForward(conf.size, shape.ffn, shape.ffn_chunks, *ffn)
        for name, _, norm in MODULES:
            if hasattr(self, name):
                setattr(self, norm, nn.LayerNorm(conf.size, eps=LAYER_NORM_EPS))
        if conf.convolution:
            self.norm_final = nn.LayerNorm(conf.size, eps=LAYER_NORM_EPS)

    def elastic_modules(self) -> list[tuple[str, str, ElasticModule]]:
        """(name, kind, module) of the modules that are there, in the order they run."""
        return [(name, kind, getattr(self, name)) for name, kind, _ in self.order if hasattr(self, name)]

    def forward(self, x: Tensor, positions: Optional[Tensor], mask: Tensor, choice: LayerChoice) -> Tensor:
        """x (B, T, D), positions (1, 2T-1, D) or None, mask (B, 1, T) -> (B, T, D)."""
        entry = x
        ran = False
        for name, kind, module in self.elastic_modules():
            kept = None if choice.kept is None else choice.kept.get(name, ())
            if kept == ():
                continue
            ran = True
            x = self._branch(x, name, kind, module, kept, choice, positions, mask)
        if not ran or not hasattr(self, "norm_final"):
            return x
        final = self.norm_final(x)
        if choice.gates is None:
            return final
        return torch.lerp(entry, final, any_open(torch.cat(list(choice.gates.values()))))

    def _branch(
        self,
        x: Tensor,
        name: str,
        kind: str,
        module: ElasticModule,
        kept: Optional[tuple[int, ...]],
        choice: LayerChoice,
        positions: Optional[Tensor],
        mask: Tensor,
    ) -> Tensor:
        """x + scale * dropout(module(norm(x)))."""
        if kept is not None and len(kept) == module.components:
            kept = None
        gates = None if choice.gates is None else choice.gates[name]
        normed = getattr(self, _NORM_OF[name])(x)
        if kind == "heads":
            branch = module(normed, positions, mask, kept, gates)
        elif kind == "conv":
            branch = module(normed, mask, kept, gates, choice.size)
        else:
            branch = self.ff_scale * module(normed, kept, gates)
        return x + self._without_some(self.dropout(branch), choice.drop.get(name, 0.0))

    def _without_some(self, branch: Tensor, rate: float) -> Tensor:
        """branch (B, T, D) with whole utterances at zero, the others scaled up so that its expectation stays."""
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

    def module_costs(self) -> dict[str, Cost]:
        """What each module costs besides its components: the norm before it and its uncut parameters."""
        norms = {name: getattr(self, norm) for name, _, norm in MODULES if hasattr(self, name)}
        return {
            name: Cost(module.params_shared() + sum(p.numel() for p in norms[name].parameters()))
            for name, _, module in self.elastic_modules()
        }

    def layer_cost(self) -> Cost:
        """What the block costs besides its modules, when any of them runs."""
        return Cost(sum(p.numel() for p in self.norm_final.parameters()) if hasattr(self, "norm_final") else 0)

    def extracted_state(self, modules: Mapping[str, tuple[int, ...]], size: str) -> dict[str, Tensor]:
        """State dict of the small block that keeps these components of each module."""
        state = {}
        for name, _, module in self.elastic_modules():
            kept = modules.get(name, ())
            if not kept:
                continue
            cut = (
                module.sliced_state(kept, size) if isinstance(module, ElasticConvolution) else module.sliced_state(kept)
            )
            state.update({f"{name}.{key}": value for key, value in cut.items()})
            norm = getattr(self, _NORM_OF[name])
            state.update({f"{_NORM_OF[name]}.{key}": value.clone() for key, value in norm.state_dict().items()})
        if hasattr(self, "norm_final"):
            state.update({f"norm_final.{key}": value.clone() for key, value in self.norm_final.state_dict().items()})
        return state
