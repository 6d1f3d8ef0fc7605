"""``encoder: todm_mh_ssm``: the multi-head state space encoder of TODM as a supernet (arXiv 2305.12498; 2309.01947).

A Transformer encoder whose self-attention is a multi-head state space layer. Options add attention after it (Stateformer),
the Conformer's convolution module and a second feed-forward module. ESPnet has no such encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Optional, cast

import torch
from torch import Tensor, nn

from espnet_todm.components import Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import Context, ElasticModule
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, LayerChoice, Slot
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.elastic.state_space import ElasticStateSpace
from espnet_todm.encoders.positions import relative_kind
from espnet_todm.encoders.stack import (
    StackedEncoder,
    check_positive,
    head_width,
    parse_blocks,
)
from espnet_todm.errors import UserError
from espnet_todm.sizes import SizeSpec

NAME = "todm_mh_ssm"

# Modules in the order in which they run.
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
STATE_SPACE = Slot("state_space", "heads", "norm_ssm")
ATTENTION = Slot("self_attn", "heads", "norm_mha")
CONVOLUTION = Slot("conv_module", "conv", "norm_conv")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block and the number of components each is cut into; 0: the module is not there."""

    macaron_ffn: int
    macaron_chunks: int
    ssm_heads: int
    heads: int
    conv: int
    conv_groups: int
    ffn: int
    ffn_chunks: int


class ElasticMhSsmBlock(ElasticBlock):
    """Macaron FFN - state space - attention - convolution - FFN, pre-norm; a norm at the end with a convolution only."""

    def __init__(self, options: Mapping[str, Any], sizes: tuple[str, ...], shape: BlockShape) -> None:
        size, dropout = options["output_size"], options["dropout_rate"]
        activation = ACTIVATIONS[options["activation_type"]]()
        ffn = dropout, activation, options["adaptive_dropout"], options["linear_units"]
        modules: dict[Slot, ElasticModule] = {}
        if shape.macaron_chunks:
            modules[MACARON] = ElasticFeedForward(size, shape.macaron_ffn, shape.macaron_chunks, *ffn)
        if shape.ssm_heads:
            width = head_width(options, "ssm_head_dim", "ssm_heads")
            names = ("ssm_state", "ssm_init", "ssm_stack", "head_gating", "bidirectional")
            modules[STATE_SPACE] = ElasticStateSpace(
                size, shape.ssm_heads, width, activation, *(options[name] for name in names)
            )
        if shape.heads:
            width, rate = head_width(options), options["attention_dropout_rate"]
            modules[ATTENTION] = ElasticAttention(size, shape.heads, width, rate, relative_kind(options))
        if shape.conv_groups:
            conv = options["cnn_module_kernel"], options["conv_norm"], activation, sizes
            modules[CONVOLUTION] = ElasticConvolution(size, shape.conv, shape.conv_groups, *conv)
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = ElasticFeedForward(size, shape.ffn, shape.ffn_chunks, *ffn)
        ff_scale = 0.5 if options["macaron_style"] else 1.0
        super().__init__(size, modules, dropout, ff_scale, final_norm=options["use_cnn_module"])

    def step(self, x: Tensor, state: Optional[Tensor], choice: LayerChoice) -> tuple[Tensor, Optional[Tensor]]:
        """One frame x (B, D) with the block's state, see :meth:`ElasticStateSpace.step` -> output (B, D), state."""
        context = Context(None, torch.ones(len(x), 1, 1, dtype=torch.bool, device=x.device), choice.size)
        for slot in (slot for slot in self.order if choice.keeps(slot.name)):
            if slot == STATE_SPACE:
                kept = None if choice.kept is None else choice.kept[slot.name]
                module, norm = cast(ElasticStateSpace, self.state_space), cast(nn.Module, self.norm_ssm)
                branch, state = module.step(norm(x), cast(Tensor, state), kept)
            else:
                branch = self.branch(x.unsqueeze(1), slot, choice, context).squeeze(1)
            x = x + branch
        return x, state


class TodmMhSsmEncoder(StackedEncoder):
    """Elastic multi-head state space encoder.

    Args:
        ssm_heads: of the state space layer; even with head_gating. A component is a pair of heads, or a head without it.
        ssm_head_dim: channels of such a head, default output_size / ssm_heads.
        ssm_state: N of each channel's state space. S4D takes 64; 16 make kernels four times as cheap, and every channel
            has a time scale of its own.
        ssm_init: "lin" or "inv", S4D's starts.
        ssm_stack: state spaces in series inside a head.
        head_gating: half of the heads, after the activation, multiply the other half.
        bidirectional: false is causal: then ``step`` streams, frame by frame.
        attention_heads: above 0, self-attention follows the state space layer (Stateformer). ``head_dim``,
            ``pos_enc_layer_type`` and ``selfattention_layer_type`` are of this attention; by default it has no positions.
        use_cnn_module, cnn_module_kernel, conv_groups, conv_norm, macaron_style: as in todm_conformer.
        input_channels, ffn_chunks, macaron_ffn_chunks, adaptive_dropout: as in todm_conformer.
        sizes, criterion, latency_table, subnet, blocks: as in todm_conformer.

    Raises:
        UserError: an unknown option, or a value that is not allowed.
    """

    name: ClassVar[str] = NAME
    cut_options: ClassVar[Sequence[str]] = ("ffn_chunks", "macaron_ffn_chunks", "conv_groups")
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        STATE_SPACE.name: ("ssm_heads", None),
        ATTENTION.name: ("heads", None),
        CONVOLUTION.name: ("conv", "conv_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        ssm_heads: int = 8,
        ssm_head_dim: Optional[int] = None,
        ssm_state: int = 16,
        ssm_init: str = "lin",
        ssm_stack: int = 1,
        head_gating: bool = True,
        bidirectional: bool = True,
        attention_heads: int = 0,
        head_dim: Optional[int] = None,
        pos_enc_layer_type: str = "none",
        selfattention_layer_type: str = "selfattn",
        rel_pos_type: str = "latest",
        linear_units: int = 2048,
        num_blocks: int = 12,
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        input_layer: Optional[str] = "conv2d",
        input_channels: Optional[int] = None,
        macaron_style: bool = False,
        activation_type: str = "swish",
        use_cnn_module: bool = False,
        cnn_module_kernel: int = 31,
        conv_groups: int = 1,
        conv_norm: str = "layer_norm",
        ffn_chunks: int = 4,
        macaron_ffn_chunks: Optional[int] = None,
        adaptive_dropout: bool = True,
        sizes: Optional[Mapping[str, SizeSpec]] = None,
        criterion: str = "params",
        latency_table: Optional[str] = None,
        subnet: Optional[str] = None,
        blocks: Optional[Sequence[Mapping[str, int]]] = None,
        **unknown: Any,
    ) -> None:
        super().__init__(input_size, output_size)
        options = {k: v for k, v in locals().items() if k not in ("self", "unknown", "__class__")}
        self.check(options, unknown, lambda: _check_options(options))
        shapes = [_uniform_shape(options)] * num_blocks if blocks is None else parse_blocks(blocks, BlockShape)
        self.build(options, shapes, partial(ElasticMhSsmBlock, options, tuple(map(str, sizes or ()))))
        self.finish(sizes, subnet, criterion, latency_table)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        widths = {"ssm_head_dim": head_width(self._options, "ssm_head_dim", "ssm_heads")}
        if self._options["attention_heads"]:
            widths["head_dim"] = head_width(self._options)
        return {**super().extracted_conf(subnet), **widths}

    def initial_state(self, batch: int, subnet: Optional[Subnet] = None) -> list[Optional[Tensor]]:
        """States of all blocks before the first frame of so many utterances, for :meth:`step`. Raises UserError where the
        encoder is not causal, and where it has modules that look at other frames without remembering them."""
        if self._options["bidirectional"]:
            raise UserError("bidirectional: True cannot run frame by frame; train with bidirectional: false")
        layers = (subnet or self.subnet).layers
        for name in (ATTENTION.name, CONVOLUTION.name):
            if any(modules.get(name) for modules in layers.values()):
                raise UserError(f"{name}: cannot run frame by frame; take a subnet or an encoder without it")
        states: list[Optional[Tensor]] = []
        for layer, block in enumerate(self.encoders):
            kept = layers.get(layer, {}).get(STATE_SPACE.name)
            states.append(block.state_space.initial_state(batch, kept) if kept else None)  # type: ignore[operator, union-attr]
        return states

    def step(
        self, hidden: Tensor, states: Sequence[Optional[Tensor]], subnet: Optional[Subnet] = None
    ) -> tuple[Tensor, list[Optional[Tensor]]]:
        """One frame of ``subsample``'s output, (B, D), and states -> output (B, D), states: ``blocks`` frame by frame,
        without dropout. Start with :meth:`initial_state`."""
        chosen, after = subnet or self.subnet, []
        for layer, (block, state) in enumerate(zip(self.encoders, states)):
            choice = LayerChoice(kept=chosen.layers.get(layer, {}), size=chosen.name)
            hidden, state = block.step(hidden, state, choice)  # type: ignore[operator]
            after.append(state)
        return self.output_norm(hidden), after


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no encoder of this kind can have."""
    check_positive(options, "ssm_heads", "ssm_stack", "ssm_state")
    heads = options["attention_heads"]
    if heads != 0:
        check_positive(options, "attention_heads")
    elif relative_kind(options) is not None:
        raise UserError(
            "pos_enc_layer_type: 'rel_pos' has no attention to serve; set attention_heads above 0, or none or abs_pos"
        )


def _uniform_shape(options: Mapping[str, Any]) -> BlockShape:
    macaron, cnn, chunks = options["macaron_style"], options["use_cnn_module"], options["ffn_chunks"]
    return BlockShape(
        macaron_ffn=options["linear_units"] if macaron else 0,
        macaron_chunks=(options["macaron_ffn_chunks"] or chunks) if macaron else 0,
        ssm_heads=options["ssm_heads"],
        heads=options["attention_heads"],
        conv=options["output_size"] if cnn else 0,
        conv_groups=options["conv_groups"] if cnn else 0,
        ffn=options["linear_units"],
        ffn_chunks=chunks,
    )
