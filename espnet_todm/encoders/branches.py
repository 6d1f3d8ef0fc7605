"""Blocks with two parallel branches, attention and cgMLP, for the E-Branchformer and the Branchformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.components import Cost
from espnet_todm.elastic.base import Context, ElasticModule, any_open
from espnet_todm.elastic.block import ACTIVATIONS, Activation, ElasticBlock, LayerChoice, Slot, scaled
from espnet_todm.elastic.cgmlp import ElasticCgMlp
from espnet_todm.elastic.convolution import depthwise
from espnet_todm.encoders.options import CUTS, Checks, EncoderOptions, check_positive
from espnet_todm.encoders.positions import Relative

# Modules in ESPnet's order.
ATTENTION = Slot("attn", "heads", "norm_mha")
CGMLP = Slot("cgmlp", "cgmlp", "norm_mlp")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
ORDER = tuple(slot.name for slot in (MACARON, ATTENTION, CGMLP, FEED_FORWARD))
# Parameters of the merge -> the axis along which the parts of the branches are concatenated.
FILTERS = {"depthwise_conv_fusion.weight": 0, "depthwise_conv_fusion.bias": 0}
COLUMNS = "merge_proj.weight"


@dataclass(frozen=True)
class BlockShape:
    """Widths and numbers of components of one block's modules; with 0 components the block lacks the module."""

    macaron_ffn: int
    macaron_chunks: int
    heads: int
    cgmlp: int
    cgmlp_groups: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class BranchOptions(EncoderOptions):
    """Options of the two branches."""

    attention_layer_type: str = "rel_selfattn"
    rel_pos_type: Relative = "latest"
    cgmlp_linear_units: int = 2048
    cgmlp_conv_kernel: int = 31
    use_linear_after_conv: bool = False
    gate_activation: Literal["identity", Activation] = "identity"
    cgmlp_groups: int = field(default=4, metadata=CUTS)  # components of each cgMLP; 1: the whole module

    attention: ClassVar[Optional[str]] = "attention_layer_type"

    def checks(self) -> Checks:
        return [*super().checks(), lambda: check_positive(self, "attention_heads", "cgmlp_linear_units")]

    def shape(self) -> BlockShape:
        return BlockShape(0, 0, self.attention_heads, self.cgmlp_linear_units, self.cgmlp_groups, 0, 0)

    def branches(self, shape: BlockShape) -> dict[Slot, ElasticModule]:
        """The parallel modules of a block with this shape."""
        modules: dict[Slot, ElasticModule] = {}
        if shape.heads:
            modules[ATTENTION] = self.self_attention(shape.heads)
        if shape.cgmlp_groups:
            gate = nn.Identity() if self.gate_activation == "identity" else ACTIVATIONS[self.gate_activation]()
            rates = self.dropout_rate, gate, self.adaptive_dropout, self.cgmlp_linear_units, self.use_linear_after_conv
            size, kernel = self.output_size, self.cgmlp_conv_kernel
            modules[CGMLP] = ElasticCgMlp(size, shape.cgmlp, shape.cgmlp_groups, kernel, *rates)
        return modules


class MergedBranches(ElasticBlock):
    """[Macaron FFN] - attention and cgMLP in parallel, merged - [FFN] - norm, pre-norm; named as EBranchformerEncoderLayer.

    The merge is ``merge_proj(z + depthwise(z))``, where z concatenates the branches' outputs. It is a sum over branches:
    each has its channels of the depthwise convolution and its columns of ``merge_proj``, which count as its costs. The sum
    omits a branch that keeps no component. The bias of ``merge_proj`` belongs to the cgMLP.

    kernel: size of the depthwise convolution in frames; with 0 the merge is ``merge_proj(z)``.
    """

    def __init__(
        self, size: int, modules: Mapping[Slot, ElasticModule], dropout: float, ff_scale: float = 1.0, kernel: int = 0
    ) -> None:
        super().__init__(size, modules, dropout, ff_scale, order=ORDER)
        self.size = size
        self.branches = [slot.name for slot in (ATTENTION, CGMLP) if slot in modules]
        width = len(self.branches) * size
        self.merge = {**(FILTERS if kernel else {}), COLUMNS: 1}
        if width and kernel:
            self.depthwise_conv_fusion = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        if width:
            self.merge_proj = nn.Linear(width, size, bias=CGMLP in modules)

    def run(self, x: Tensor, running: Sequence[Slot], choice: LayerChoice, context: Context) -> Tensor:
        beside = [slot for slot in running if slot.name in self.branches]
        x = super().run(x, [slot for slot in running if slot == MACARON], choice, context)
        if beside:
            total: Any = sum(self._merged(x, slot, choice, context) for slot in beside)
            merged = self.dropped(total, context)
            x = x + scaled(merged, choice.scale)
        return super().run(x, [slot for slot in running if slot == FEED_FORWARD], choice, context)

    def _merged(self, x: Tensor, slot: Slot, choice: LayerChoice, context: Context) -> Tensor:
        """The contribution of one branch to the merge, (B, T, D) -> (B, T, D)."""
        branch = self.dropped(self.branch(x, slot, choice, context), context)
        opened = any_open(choice.gates[slot.name]) if choice.gates is not None else 1.0
        bias: Optional[Tensor] = self.merge_proj.bias * opened if slot == CGMLP else None
        if len(self.merge) > 1:
            filters, shift = (self._part(name, slot.name) for name in FILTERS)
            branch = branch + depthwise(branch, context.mask, filters, shift * opened)
        merged = F.linear(branch, self._part(COLUMNS, slot.name), bias)
        return self.stochastic_depth(merged, choice.drop.get(slot.name, 0.0))

    def _part(self, parameter: str, branch: str) -> Tensor:
        """A branch's part of one of the merge's parameters."""
        start = self.branches.index(branch) * self.size
        return self.get_parameter(parameter).narrow(self.merge[parameter], start, self.size)

    def module_costs(self, frames: int, per_second: float) -> dict[str, Cost]:
        costs = super().module_costs(frames, per_second)
        for branch in self.branches:
            parts = [self._part(name, branch) for name in self.merge]
            bias = self.size if branch == CGMLP.name else 0
            flops = 2.0 * frames * sum(part.numel() for part in parts if part.dim() > 1) * per_second
            costs[branch] += Cost(sum(part.numel() for part in parts) + bias, flops)
        return costs

    def extracted_state(self, modules: Mapping[str, tuple[int, ...]], size: str) -> dict[str, Tensor]:
        state = super().extracted_state(modules, size)
        kept = [branch for branch in self.branches if modules.get(branch)]
        for parameter, axis in self.merge.items() if kept else ():
            state[parameter] = torch.cat([self._part(parameter, branch) for branch in kept], axis).detach().clone()
        if CGMLP.name in kept:
            state["merge_proj.bias"] = self.merge_proj.bias.detach().clone()
        return state
