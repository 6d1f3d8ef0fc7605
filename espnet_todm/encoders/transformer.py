"""``encoder: todm_transformer``: ESPnet's Transformer as a supernet.

With all components it is ESPnet's own TransformerEncoder: same options, same parameter names, same outputs. So a checkpoint
of ``encoder: transformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Optional

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from torch import nn

from espnet_todm.components import Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ElasticBlock, Slot
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.encoders.stack import StackedEncoder, head_width, parse_blocks
from espnet_todm.sizes import SizeSpec

NAME = "todm_transformer"

# Modules in ESPnet's order.
ATTENTION = Slot("self_attn", "heads", "norm1")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm2")


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block and the number of components each is cut into; 0 components: the module is not there."""

    heads: int
    ffn: int
    ffn_chunks: int


class ElasticTransformerBlock(ElasticBlock):
    """Attention - FFN, pre-norm, names as in ESPnet's transformer EncoderLayer."""

    def __init__(self, options: Mapping[str, Any], shape: BlockShape) -> None:
        size, dropout = options["output_size"], options["dropout_rate"]
        modules: dict[Slot, ElasticModule] = {}
        if shape.heads:
            rate = options["attention_dropout_rate"]
            modules[ATTENTION] = ElasticAttention(size, shape.heads, head_width(options), rate, relative=None)
        if shape.ffn_chunks:
            rates = dropout, nn.ReLU(), options["adaptive_dropout"], options["linear_units"]
            modules[FEED_FORWARD] = ElasticFeedForward(size, shape.ffn, shape.ffn_chunks, *rates)
        super().__init__(size, modules, dropout, final_norm=False)


class TodmTransformerEncoder(StackedEncoder):
    """Elastic Transformer. Options as in ESPnet's TransformerEncoder, and

    Args:
        input_channels, ffn_chunks, head_dim, adaptive_dropout: as in todm_conformer.
        sizes, criterion, latency_table, subnet, blocks: as in todm_conformer.

    Raises:
        UserError: an option has no meaning here, or a value is not allowed.
    """

    name: ClassVar[str] = NAME
    stock_name: ClassVar[str] = "transformer"
    stock_class: ClassVar[type[AbsEncoder]] = TransformerEncoder
    # ESPnet's linear has another function here than in its Conformer, at the same names.
    inputs: ClassVar[Sequence[Optional[str]]] = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "conv1d2")
    stock_inputs: ClassVar[Sequence[Optional[str]]] = inputs
    cut_options: ClassVar[Sequence[str]] = ("ffn_chunks",)
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        ATTENTION.name: ("heads", None),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }
    activation: ClassVar[Optional[str]] = None
    attention: ClassVar[Optional[str]] = None
    fixed: ClassVar[Mapping[str, Any]] = {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "qk_norm": False,
    }
    ignored: ClassVar[Sequence[str]] = ("positionwise_conv_kernel_size", "padding_idx", "use_flash_attn")

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 2048,
        num_blocks: int = 6,
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        input_layer: Optional[str] = "conv2d",
        pos_enc_layer_type: str = "abs_pos",
        layer_drop_rate: float = 0.0,
        interctc_layer_idx: Optional[Sequence[int]] = None,
        interctc_use_conditioning: bool = False,
        input_channels: Optional[int] = None,
        ffn_chunks: int = 4,
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
        self.check(options, stock)
        uniform = BlockShape(attention_heads, linear_units, ffn_chunks)
        shapes = [uniform] * num_blocks if blocks is None else parse_blocks(blocks, BlockShape)
        self.build(options, shapes, partial(ElasticTransformerBlock, options))
        self.finish(sizes, subnet, criterion, latency_table)

    def positional_dropout(self) -> float:
        """ESPnet gives its two-dimensional input layers no rate of their own."""
        one_dimension = self.options["input_layer"] == "conv1d2"
        return float(self.options["positional_dropout_rate" if one_dimension else "dropout_rate"])

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        return {**super().extracted_conf(subnet), "head_dim": head_width(self.options)}

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        uniform = self.uniform_shape(conf)
        if uniform is None or not self.has_stock_front() or conf["pos_enc_layer_type"] != "abs_pos":
            return None
        shape = BlockShape(**uniform)
        if not shape.ffn_chunks or shape.heads * conf["head_dim"] != conf["output_size"]:
            return None
        return {**self.stock_options(conf), "linear_units": shape.ffn, "attention_heads": shape.heads}
