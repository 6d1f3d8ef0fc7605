"""``encoder: todm_transformer``: ESPnet's Transformer as a supernet.

With all components it equals ESPnet's TransformerEncoder: same options, same parameter names, same outputs. So a checkpoint
of ``encoder: transformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from torch import nn

from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ElasticBlock, Slot
from espnet_todm.encoders.options import Checks, InterCtcOptions, check_positive
from espnet_todm.encoders.stack import StackedEncoder

# Modules in ESPnet's order.
ATTENTION = Slot("self_attn", "heads", "norm1")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm2")


@dataclass(frozen=True)
class BlockShape:
    """Widths and numbers of components of one block's modules; with 0 components the block lacks the module."""

    heads: int
    ffn: int
    ffn_chunks: int


@dataclass(frozen=True)
class TransformerOptions(InterCtcOptions):
    """Options and defaults of ESPnet's TransformerEncoder, and options of the supernet."""

    num_blocks: int = 6
    pos_enc_layer_type: str = "abs_pos"

    # No linear: ESPnet's Transformer computes it differently from its Conformer, with the same parameter names.
    inputs: ClassVar[Sequence[Optional[str]]] = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "conv1d2")
    fixed: ClassVar[Mapping[str, Any]] = {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "qk_norm": False,
    }
    ignored: ClassVar[Sequence[str]] = ("positionwise_conv_kernel_size", "padding_idx", "use_flash_attn")

    def checks(self) -> Checks:
        return [*super().checks(), lambda: check_positive(self, "attention_heads")]

    def shape(self) -> BlockShape:
        return BlockShape(self.attention_heads, self.linear_units, self.ffn_chunks)


class ElasticTransformerBlock(ElasticBlock):
    """Attention - FFN, pre-norm, names as in ESPnet's transformer EncoderLayer."""

    def __init__(self, options: TransformerOptions, shape: BlockShape) -> None:
        modules: dict[Slot, ElasticModule] = {}
        if shape.heads:
            modules[ATTENTION] = options.self_attention(shape.heads)
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = options.feed_forward(shape.ffn, shape.ffn_chunks, nn.ReLU())
        super().__init__(options.output_size, modules, options.dropout_rate, final_norm=False)


class TodmTransformerEncoder(StackedEncoder):
    """Elastic Transformer; its options are :class:`TransformerOptions`."""

    name: ClassVar[str] = "todm_transformer"
    options_type = TransformerOptions
    options: TransformerOptions
    block_type = ElasticTransformerBlock
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        ATTENTION.name: ("heads", None),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }
    stock_name: ClassVar[str] = "transformer"
    stock_class: ClassVar[type[AbsEncoder]] = TransformerEncoder
    stock_inputs: ClassVar[Sequence[Optional[str]]] = TransformerOptions.inputs

    def positional_dropout(self) -> float:
        """ESPnet uses ``dropout_rate`` in the two-dimensional input layers."""
        one_dimension = self.options.input_layer == "conv1d2"
        return float(self.options.positional_dropout_rate if one_dimension else self.options.dropout_rate)

    def stock_widths(self, shape: BlockShape) -> Optional[dict[str, Any]]:
        faithful = shape.ffn_chunks > 0 and self.options.pos_enc_layer_type == "abs_pos"
        return {"linear_units": shape.ffn} if faithful else None
