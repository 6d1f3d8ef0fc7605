"""``encoder: todm_conformer``: ESPnet's Conformer as a supernet.

With all components it equals ESPnet's ConformerEncoder: same options, same parameter names, same outputs. So a checkpoint
of ``encoder: conformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, Union

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, Slot
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.encoders.frontends import STOCK_INPUTS
from espnet_todm.encoders.options import Checks, InterCtcOptions, StreamingOptions, check_positive
from espnet_todm.encoders.positions import LEGACY, LONGEST, Relative
from espnet_todm.encoders.stack import StackedEncoder

# Modules in ESPnet's order.
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
ATTENTION = Slot("self_attn", "heads", "norm_mha")
CONVOLUTION = Slot("conv_module", "conv", "norm_conv")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")
CONVOLUTION_FIRST = tuple(slot.name for slot in (MACARON, CONVOLUTION, ATTENTION, FEED_FORWARD))


@dataclass(frozen=True)
class BlockShape:
    """Widths and numbers of components of one block's modules; with 0 components the block lacks the module."""

    macaron_ffn: int
    macaron_chunks: int
    heads: int
    conv: int
    conv_groups: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class ConformerOptions(InterCtcOptions, StreamingOptions):
    """Options and defaults of ESPnet's ConformerEncoder, and options of the supernet."""

    num_blocks: int = 6
    rel_pos_type: Relative = LEGACY
    max_pos_emb_len: int = LONGEST
    stochastic_depth_rate: Union[float, Sequence[float]] = 0.0
    convolution_first: bool = False  # convolution before attention, as in OrthoSoftmax; ESPnet's order is the reverse

    fixed: ClassVar[Mapping[str, Any]] = {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "zero_triu": False,
        "ctc_trim": False,
        "qk_norm": False,
    }
    ignored: ClassVar[Sequence[str]] = ("positionwise_conv_kernel_size", "padding_idx", "use_flash_attn")

    def checks(self) -> Checks:
        return [*super().checks(), lambda: check_positive(self, "attention_heads")]

    def shape(self) -> BlockShape:
        return BlockShape(**self.shape_of_modules())


class ElasticConformerBlock(ElasticBlock):
    """Macaron FFN - attention - convolution - FFN - norm, pre-norm, names as in ESPnet's conformer EncoderLayer.

    With ``convolution_first`` the convolution comes before the attention.
    """

    def __init__(self, options: ConformerOptions, shape: BlockShape) -> None:
        size, activation = options.output_size, ACTIVATIONS[options.activation_type]()
        modules: dict[Slot, ElasticModule] = {}
        if shape.macaron_chunks:
            modules[MACARON] = options.feed_forward(shape.macaron_ffn, shape.macaron_chunks, activation)
        if shape.heads:
            modules[ATTENTION] = options.self_attention(shape.heads)
        if shape.conv_groups:
            conv = options.cnn_module_kernel, options.conv_norm, activation, options.size_names, options.causal
            modules[CONVOLUTION] = ElasticConvolution(size, shape.conv, shape.conv_groups, *conv)
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = options.feed_forward(shape.ffn, shape.ffn_chunks, activation)
        order = CONVOLUTION_FIRST if options.convolution_first else ()
        ff_scale = 0.5 if options.macaron_style else 1.0
        super().__init__(size, modules, options.dropout_rate, ff_scale, options.use_cnn_module, order)


class TodmConformerEncoder(StackedEncoder):
    """Elastic Conformer; its options are :class:`ConformerOptions`."""

    name: ClassVar[str] = "todm_conformer"
    options_type = ConformerOptions
    options: ConformerOptions
    block_type = ElasticConformerBlock
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        ATTENTION.name: ("heads", None),
        CONVOLUTION.name: ("conv", "conv_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }
    stock_name: ClassVar[str] = "conformer"
    stock_class: ClassVar[type[AbsEncoder]] = ConformerEncoder
    stock_inputs: ClassVar[Sequence[Optional[str]]] = STOCK_INPUTS

    def stock_widths(self, shape: BlockShape) -> Optional[dict[str, Any]]:
        options, size = self.options, self.options.output_size
        convolution = shape.conv == size and options.conv_norm == "batch_norm"
        faithful = (
            shape.ffn_chunks > 0
            and (not options.macaron_style or shape.macaron_ffn == shape.ffn)
            and (not options.use_cnn_module or convolution)
            and not (options.convolution_first or options.causal)
        )
        return {"linear_units": shape.ffn} if faithful else None
