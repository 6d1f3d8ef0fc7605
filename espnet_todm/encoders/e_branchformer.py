"""``encoder: todm_e_branchformer``: ESPnet's E-Branchformer as a supernet (Kim et al., arXiv 2210.00077).

With all components it is ESPnet's own EBranchformerEncoder: same options, same parameter names, same outputs. So a
checkpoint of ``encoder: e_branchformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from torch import Tensor, nn

from espnet_todm.components import Cost, Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import Context, ElasticModule, any_open
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, LayerChoice, Slot, scaled
from espnet_todm.elastic.cgmlp import ElasticCgMlp
from espnet_todm.elastic.convolution import check_kernel, depthwise
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.encoders.frontends import STOCK_INPUTS, STOCK_INPUTS_1D
from espnet_todm.encoders.positions import LONGEST, relative_kind
from espnet_todm.encoders.stack import (
    StackedEncoder,
    check_among,
    check_positive,
    head_width,
    parse_blocks,
)
from espnet_todm.sizes import SizeSpec

NAME = "todm_e_branchformer"
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
        return self.without_some(merged, choice.drop.get(slot.name, 0.0))

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


class TodmEBranchformerEncoder(StackedEncoder):
    """Elastic E-Branchformer. Options as in ESPnet's EBranchformerEncoder, and

    Args:
        input_channels: of the input layer's convolutions, default output_size as in ESPnet's.
        ffn_chunks, macaron_ffn_chunks: components of each feed-forward module (default: as ffn_chunks).
        cgmlp_groups: components of each cgMLP; 1 takes it as a whole.
        head_dim: width of an attention head, default output_size / attention_heads.
        adaptive_dropout: dropout inside feed-forward modules and cgMLPs shrinks with the kept width.
        sizes, criterion, latency_table, subnet, blocks: as in todm_conformer.

    Raises:
        UserError: an option has no meaning here, or a value is not allowed.
    """

    name: ClassVar[str] = NAME
    stock_name: ClassVar[str] = "e_branchformer"
    stock_class: ClassVar[type[AbsEncoder]] = EBranchformerEncoder
    stock_inputs: ClassVar[Sequence[Optional[str]]] = (*STOCK_INPUTS, *STOCK_INPUTS_1D)
    norm_between: ClassVar[bool] = False
    activation: ClassVar[Optional[str]] = "ffn_activation_type"
    attention: ClassVar[Optional[str]] = "attention_layer_type"
    fixed: ClassVar[Mapping[str, Any]] = {
        "positionwise_layer_type": "linear",
        "zero_triu": False,
        "qk_norm": False,
        "gradient_checkpoint_layers": [],
    }
    ignored: ClassVar[Sequence[str]] = ("padding_idx", "use_flash_attn")
    cut_options: ClassVar[Sequence[str]] = ("ffn_chunks", "macaron_ffn_chunks", "cgmlp_groups")
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        ATTENTION.name: ("heads", None),
        CGMLP.name: ("cgmlp", "cgmlp_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        attention_layer_type: str = "rel_selfattn",
        pos_enc_layer_type: str = "rel_pos",
        rel_pos_type: str = "latest",
        cgmlp_linear_units: int = 2048,
        cgmlp_conv_kernel: int = 31,
        use_linear_after_conv: bool = False,
        gate_activation: str = "identity",
        num_blocks: int = 12,
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        input_layer: Optional[str] = "conv2d",
        input_channels: Optional[int] = None,
        use_ffn: bool = False,
        macaron_ffn: bool = False,
        ffn_activation_type: str = "swish",
        linear_units: int = 2048,
        merge_conv_kernel: int = 3,
        max_pos_emb_len: int = LONGEST,
        layer_drop_rate: float = 0.0,
        interctc_layer_idx: Optional[Sequence[int]] = None,
        interctc_use_conditioning: bool = False,
        ffn_chunks: int = 4,
        macaron_ffn_chunks: Optional[int] = None,
        cgmlp_groups: int = 4,
        head_dim: Optional[int] = None,
        adaptive_dropout: bool = True,
        sizes: Optional[Mapping[str, SizeSpec]] = None,
        criterion: str = "params",
        latency_table: Optional[str] = None,
        subnet: Optional[str] = None,
        blocks: Optional[Sequence[Mapping[str, int]]] = None,
        **stock: Any,
    ) -> None:
        super().__init__(input_size, output_size)
        options = {k: v for k, v in locals().items() if k not in ("self", "stock", "__class__")}
        self.check(options, stock, lambda: _check_options(options))
        shapes = [uniform_shape(options)] * num_blocks if blocks is None else parse_blocks(blocks, BlockShape)
        self.build(options, shapes, partial(ElasticEBranchformerBlock, block_conf(options)))
        self.finish(sizes, subnet, criterion, latency_table)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        return {**super().extracted_conf(subnet), "head_dim": head_width(self._options)}

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        uniform = self.uniform_shape(conf)
        if uniform is None:
            return None
        shape = BlockShape(**uniform)
        macaron = shape.ffn if _has_macaron(conf) else 0
        faithful = (
            shape.cgmlp_groups > 0
            and shape.heads * conf["head_dim"] == conf["output_size"]
            and shape.macaron_ffn == macaron
            and self.has_stock_front()
        )
        if not faithful:
            return None
        widths = {"attention_heads": shape.heads, "cgmlp_linear_units": shape.cgmlp, "use_ffn": shape.ffn > 0}
        if shape.ffn:
            widths["linear_units"] = shape.ffn
        return {**self.stock_options(conf), **widths}


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no E-Branchformer of ours can have."""
    check_cgmlp(options)
    check_positive(options, "merge_conv_kernel")
    check_kernel("merge_conv_kernel", options["merge_conv_kernel"])


def check_cgmlp(options: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no branch of ours can have."""
    check_positive(options, "attention_heads", "cgmlp_linear_units")
    check_among(options, "gate_activation", ("identity", *ACTIVATIONS))


def _has_macaron(options: Mapping[str, Any]) -> bool:
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
        macaron=_has_macaron(options),
        activation=options["ffn_activation_type"],
        dropout=options["dropout_rate"],
        attention_dropout=options["attention_dropout_rate"],
        adaptive_dropout=options["adaptive_dropout"],
        linear_units=options["linear_units"],
        cgmlp_units=options["cgmlp_linear_units"],
        linear_after=options["use_linear_after_conv"],
    )


def uniform_shape(options: Mapping[str, Any]) -> BlockShape:
    ffn, macaron, chunks = options["use_ffn"], _has_macaron(options), options["ffn_chunks"]
    return BlockShape(
        macaron_ffn=options["linear_units"] if macaron else 0,
        macaron_chunks=(options["macaron_ffn_chunks"] or chunks) if macaron else 0,
        heads=options["attention_heads"],
        cgmlp=options["cgmlp_linear_units"],
        cgmlp_groups=options["cgmlp_groups"],
        ffn=options["linear_units"] if ffn else 0,
        ffn_chunks=chunks if ffn else 0,
    )
