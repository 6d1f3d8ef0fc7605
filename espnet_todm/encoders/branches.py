"""Blocks of two branches side by side, attention and cgMLP: those of the E-Branchformer and of the Branchformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_todm.components import Cost
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import Context, ElasticModule, any_open
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, LayerChoice, Slot, scaled
from espnet_todm.elastic.cgmlp import ElasticCgMlp
from espnet_todm.elastic.convolution import depthwise
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.encoders.positions import relative_kind
from espnet_todm.encoders.stack import check_among, check_positive, head_width

# Modules in ESPnet's order.
ATTENTION = Slot("attn", "heads", "norm_mha")
CGMLP = Slot("cgmlp", "cgmlp", "norm_mlp")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
ORDER = tuple(slot.name for slot in (MACARON, ATTENTION, CGMLP, FEED_FORWARD))
# Parameters of the merge -> the axis along which the branches' parts lie.
FILTERS = {"depthwise_conv_fusion.weight": 0, "depthwise_conv_fusion.bias": 0}
COLUMNS = "merge_proj.weight"


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block and the number of components each is cut into; 0 components: the module is not there."""

    macaron_ffn: int
    macaron_chunks: int
    heads: int
    cgmlp: int
    cgmlp_groups: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class BlockConf:
    """What all blocks of an encoder share."""

    size: int
    head_dim: int
    relative: Optional[str]  # the kind of relative positions, None without
    cgmlp_kernel: int
    gate_activation: str
    merge_kernel: int  # 0: the merge has no convolution, as in the Branchformer
    macaron: bool
    activation: str
    dropout: float
    attention_dropout: float
    adaptive_dropout: bool
    linear_units: int  # that the dropout rate is for
    cgmlp_units: int  # alike
    linear_after: bool


class ElasticEBranchformerBlock(ElasticBlock):
    """Macaron FFN - attention beside cgMLP, merged - FFN - norm, pre-norm; names as in EBranchformerEncoderLayer.

    The merge, ``merge_proj(z + depthwise(z))`` of the branches' outputs z side by side, is a sum over branches: each has
    its channels of the depthwise convolution and its columns of ``merge_proj``, and pays for them. A branch that keeps
    nothing is not in the sum, and a block without it does not have them. The bias of ``merge_proj`` goes with the cgMLP.
    """

    def __init__(self, conf: BlockConf, shape: BlockShape) -> None:
        ffn = conf.dropout, ACTIVATIONS[conf.activation](), conf.adaptive_dropout, conf.linear_units
        modules: dict[Slot, ElasticModule] = {}
        if shape.heads:
            modules[ATTENTION] = ElasticAttention(
                conf.size, shape.heads, conf.head_dim, conf.attention_dropout, conf.relative
            )
        if shape.cgmlp_groups:
            gate = nn.Identity() if conf.gate_activation == "identity" else ACTIVATIONS[conf.gate_activation]()
            rate = conf.dropout, gate, conf.adaptive_dropout, conf.cgmlp_units, conf.linear_after
            modules[CGMLP] = ElasticCgMlp(conf.size, shape.cgmlp, shape.cgmlp_groups, conf.cgmlp_kernel, *rate)
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = ElasticFeedForward(conf.size, shape.ffn, shape.ffn_chunks, *ffn)
        if shape.macaron_chunks:
            modules[MACARON] = ElasticFeedForward(conf.size, shape.macaron_ffn, shape.macaron_chunks, *ffn)
        super().__init__(conf.size, modules, conf.dropout, 0.5 if conf.macaron else 1.0, order=ORDER)
        self.size = conf.size
        self.branches = [slot.name for slot in (ATTENTION, CGMLP) if slot in modules]
        width, kernel = len(self.branches) * conf.size, conf.merge_kernel
        self.merge = {**(FILTERS if kernel else {}), COLUMNS: 1}
        if width and kernel:
            self.depthwise_conv_fusion = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        if width:
            self.merge_proj = nn.Linear(width, conf.size, bias=CGMLP in modules)

    def run(self, x: Tensor, running: Sequence[Slot], choice: LayerChoice, context: Context) -> Tensor:
        beside = [slot for slot in running if slot.name in self.branches]
        x = super().run(x, [slot for slot in running if slot == MACARON], choice, context)
        if beside:
            merged = self.dropout(sum(self._merged(x, slot, choice, context) for slot in beside))
            x = x + scaled(merged, choice.scale)
        return super().run(x, [slot for slot in running if slot == FEED_FORWARD], choice, context)

    def _merged(self, x: Tensor, slot: Slot, choice: LayerChoice, context: Context) -> Tensor:
        """What one branch adds to the merge, (B, T, D) -> (B, T, D)."""
        branch = self.dropout(self.branch(x, slot, choice, context))
        opened = any_open(choice.gates[slot.name]) if choice.gates is not None else 1.0
        bias: Optional[Tensor] = self.merge_proj.bias * opened if slot == CGMLP else None
        if len(self.merge) > 1:
            filters, shift = (self._part(name, slot.name) for name in FILTERS)
            branch = branch + depthwise(branch, context.mask, filters, shift * opened)
        merged = F.linear(branch, self._part(COLUMNS, slot.name), bias)
        return self.stochastic_depth(merged, choice.drop.get(slot.name, 0.0))

    def _part(self, parameter: str, branch: str) -> Tensor:
        """What belongs to a branch of one of the merge's parameters."""
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


def check_cgmlp(options: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no branch of ours can have."""
    check_positive(options, "attention_heads", "cgmlp_linear_units")
    check_among(options, "gate_activation", ("identity", *ACTIVATIONS))


def has_macaron(options: Mapping[str, Any]) -> bool:
    """As in ESPnet, where ``macaron_ffn`` means nothing by itself."""
    return bool(options["use_ffn"] and options["macaron_ffn"])


def block_conf(options: Mapping[str, Any]) -> BlockConf:
    return BlockConf(
        size=options["output_size"],
        head_dim=head_width(options),
        relative=relative_kind(options),
        cgmlp_kernel=options["cgmlp_conv_kernel"],
        gate_activation=options["gate_activation"],
        merge_kernel=options["merge_conv_kernel"],
        macaron=has_macaron(options),
        activation=options["ffn_activation_type"],
        dropout=options["dropout_rate"],
        attention_dropout=options["attention_dropout_rate"],
        adaptive_dropout=options["adaptive_dropout"],
        linear_units=options["linear_units"],
        cgmlp_units=options["cgmlp_linear_units"],
        linear_after=options["use_linear_after_conv"],
    )


def uniform_shape(options: Mapping[str, Any]) -> BlockShape:
    ffn, macaron, chunks = options["use_ffn"], has_macaron(options), options["ffn_chunks"]
    return BlockShape(
        macaron_ffn=options["linear_units"] if macaron else 0,
        macaron_chunks=(options["macaron_ffn_chunks"] or chunks) if macaron else 0,
        heads=options["attention_heads"],
        cgmlp=options["cgmlp_linear_units"],
        cgmlp_groups=options["cgmlp_groups"],
        ffn=options["linear_units"] if ffn else 0,
        ffn_chunks=chunks if ffn else 0,
    )
