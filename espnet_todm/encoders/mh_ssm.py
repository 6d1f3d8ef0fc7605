"""``encoder: todm_mh_ssm``: the multi-head state space encoder of TODM as a supernet (arXiv 2305.12498; 2309.01947).

It is a Transformer encoder with multi-head state space layers in place of self-attention. Options add attention after them
(Stateformer), the Conformer's convolution module and a second feed-forward module. ESPnet has no such encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from espnet_todm.components import Subnet
from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, Slot
from espnet_todm.elastic.convolution import ElasticConvolution, Norm
from espnet_todm.elastic.state_space import ElasticStateSpace
from espnet_todm.encoders.options import Checks, StreamingOptions, check_positive
from espnet_todm.encoders.positions import relative_kind
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError

# Modules in the order in which they run.
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
STATE_SPACE = Slot("state_space", "heads", "norm_ssm")
ATTENTION = Slot("self_attn", "heads", "norm_mha")
CONVOLUTION = Slot("conv_module", "conv", "norm_conv")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")


@dataclass(frozen=True)
class BlockShape:
    """Widths and numbers of components of one block's modules; with 0 heads or chunks the block lacks the module."""

    macaron_ffn: int
    macaron_chunks: int
    ssm_heads: int
    heads: int
    conv: int
    conv_groups: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class MhSsmOptions(StreamingOptions):
    """Options of the state space layer, and options of the other modules as in todm_conformer.

    By default, blocks have no attention and no convolution. Without attention, ``bidirectional: false`` is enough for
    streaming: chunks of any size give the same output.
    """

    ssm_heads: int = 8  # even with head_gating; a component is a head, or with head_gating a pair of heads
    ssm_head_dim: Optional[int] = None  # channels of a state space head, default output_size / ssm_heads
    # State size N of each channel. S4D uses 64. 16 makes kernels four times as cheap, and every channel has its own time
    # scale.
    ssm_state: int = 16
    ssm_init: str = "lin"  # S4D's initialisation, "lin" or "inv"
    ssm_stack: int = 1  # number of state spaces in series inside a head
    head_gating: bool = True  # half of the heads, after an activation, gates the other half
    bidirectional: bool = True  # false: no frame to the right is seen; needed for streaming
    attention_heads: int = 0  # above 0: self-attention after the state space layer (Stateformer)
    pos_enc_layer_type: str = "none"
    selfattention_layer_type: str = "selfattn"
    use_cnn_module: bool = False
    conv_norm: Norm = "layer_norm"

    def checks(self) -> Checks:
        return [
            *super().checks(),
            lambda: check_positive(self, "ssm_heads", "ssm_stack", "ssm_state"),
            self._check_heads,
        ]

    def _check_heads(self) -> None:
        if self.attention_heads:
            check_positive(self, "attention_heads")
        elif self.chunk is not None:
            raise UserError("chunk: masks attention, and attention_heads is 0; leave it out")
        elif relative_kind(self) is not None:
            raise UserError(
                "pos_enc_layer_type: 'rel_pos' has no attention to serve; set attention_heads above 0, or none or abs_pos"
            )

    def shape(self) -> BlockShape:
        return BlockShape(ssm_heads=self.ssm_heads, **self.shape_of_modules())

    def ssm_width(self) -> int:
        """Channels of a state space head."""
        return self.head_width("ssm_head_dim", "ssm_heads")


class ElasticMhSsmBlock(ElasticBlock):
    """Macaron FFN - state space - attention - convolution - FFN, pre-norm; a final norm only with a convolution."""

    def __init__(self, options: MhSsmOptions, shape: BlockShape) -> None:
        size, activation = options.output_size, ACTIVATIONS[options.activation_type]()
        modules: dict[Slot, ElasticModule] = {}
        if shape.macaron_chunks:
            modules[MACARON] = options.feed_forward(shape.macaron_ffn, shape.macaron_chunks, activation)
        if shape.ssm_heads:
            names = ("ssm_state", "ssm_init", "ssm_stack", "head_gating", "bidirectional")
            rest = (getattr(options, name) for name in names)
            modules[STATE_SPACE] = ElasticStateSpace(size, shape.ssm_heads, options.ssm_width(), activation, *rest)
        if shape.heads:
            modules[ATTENTION] = options.self_attention(shape.heads)
        if shape.conv_groups:
            conv = options.cnn_module_kernel, options.conv_norm, activation, options.size_names, options.causal
            modules[CONVOLUTION] = ElasticConvolution(size, shape.conv, shape.conv_groups, *conv)
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = options.feed_forward(shape.ffn, shape.ffn_chunks, activation)
        ff_scale = 0.5 if options.macaron_style else 1.0
        super().__init__(size, modules, options.dropout_rate, ff_scale, final_norm=options.use_cnn_module)


class TodmMhSsmEncoder(StackedEncoder):
    """Elastic multi-head state space encoder; its options are :class:`MhSsmOptions`."""

    name: ClassVar[str] = "todm_mh_ssm"
    options_type = MhSsmOptions
    options: MhSsmOptions
    block_type = ElasticMhSsmBlock
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        STATE_SPACE.name: ("ssm_heads", None),
        ATTENTION.name: ("heads", None),
        CONVOLUTION.name: ("conv", "conv_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        return {**super().extracted_conf(subnet), "ssm_head_dim": self.options.ssm_width()}
