"""``encoder: todm_conformer``: ESPnet's Conformer as a supernet.

With all components it is ESPnet's own ConformerEncoder: same options, same parameter names, same outputs. So a checkpoint
of ``encoder: conformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Optional, Union

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_todm.components import Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.base import ElasticModule
from espnet_todm.elastic.block import ACTIVATIONS, ElasticBlock, Slot
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.encoders.frontends import STOCK_INPUTS
from espnet_todm.encoders.positions import LONGEST, relative_kind
from espnet_todm.encoders.stack import (
    StackedEncoder,
    head_width,
    parse_blocks,
)
from espnet_todm.sizes import SizeSpec

NAME = "todm_conformer"
# Modules in ESPnet's order.
MACARON = Slot("feed_forward_macaron", "ffn", "norm_ff_macaron")
ATTENTION = Slot("self_attn", "heads", "norm_mha")
CONVOLUTION = Slot("conv_module", "conv", "norm_conv")
FEED_FORWARD = Slot("feed_forward", "ffn", "norm_ff")
CONVOLUTION_FIRST = tuple(slot.name for slot in (MACARON, CONVOLUTION, ATTENTION, FEED_FORWARD))


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
    relative: Optional[str]  # the kind of relative positions, None without
    macaron: bool
    convolution: bool
    conv_norm: str
    activation: str
    dropout: float
    attention_dropout: float
    adaptive_dropout: bool
    linear_units: int  # that the dropout rate is for
    convolution_first: bool = False  # the convolution before the attention, as in OrthoSoftmax; ESPnet has it after
    causal: bool = False  # the convolution sees no frame to the right


class ElasticConformerBlock(ElasticBlock):
    """Macaron FFN - attention - convolution - FFN - norm, pre-norm, names as in ESPnet's conformer EncoderLayer.

    With ``convolution_first`` attention and convolution change places.
    """

    def __init__(self, conf: BlockConf, shape: BlockShape, sizes: tuple[str, ...] = ()) -> None:
        activation = ACTIVATIONS[conf.activation]()
        ffn = conf.dropout, activation, conf.adaptive_dropout, conf.linear_units
        modules: dict[Slot, ElasticModule] = {}
        if shape.macaron_chunks:
            modules[MACARON] = ElasticFeedForward(conf.size, shape.macaron_ffn, shape.macaron_chunks, *ffn)
        if shape.heads:
            modules[ATTENTION] = ElasticAttention(
                conf.size, shape.heads, conf.head_dim, conf.attention_dropout, conf.relative
            )
        if shape.conv_groups:
            modules[CONVOLUTION] = ElasticConvolution(
                conf.size, shape.conv, shape.conv_groups, conf.kernel, conf.conv_norm, activation, sizes, conf.causal
            )
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = ElasticFeedForward(conf.size, shape.ffn, shape.ffn_chunks, *ffn)
        order = CONVOLUTION_FIRST if conf.convolution_first else ()
        super().__init__(conf.size, modules, conf.dropout, 0.5 if conf.macaron else 1.0, conf.convolution, order)


class TodmConformerEncoder(StackedEncoder):
    """Elastic Conformer. Options as in ESPnet's ConformerEncoder, and

    Args:
        input_channels: of the input layer's convolutions, default output_size as in ESPnet's. That part runs in every
            subnet and at a high frame rate: 48 instead of 144 channels make a 6-block Conformer's whole step 1.8 times
            as fast.
        ffn_chunks, macaron_ffn_chunks: components of each feed-forward module (default: as ffn_chunks).
        conv_groups: components of each convolution module; 1 takes it as a whole.
        conv_norm: "batch_norm" (ESPnet's) or "layer_norm" (the same statistics for every subnet; recommended).
        head_dim: width of an attention head, default output_size / attention_heads.
        adaptive_dropout: feed-forward dropout shrinks with the kept width.
        convolution_first: the convolution module runs before the attention (OrthoSoftmax) instead of after it (ESPnet).
        causal: the convolution sees no frame to the right. Needed for streaming.
        chunk: chunks of speech that training draws, see :class:`espnet_todm.encoders.chunks.ChunkOptions`: attention sees
            its own chunk and some left context.
        decode_chunk: [frames of a chunk, frames of left context] in validation and in extracted models; default full
            context.
        sizes: named sizes, see :func:`espnet_todm.sizes.resolve_sizes`.
        criterion: what a size given as a plain share is a share of: "params", "flops" or "latency".
        latency_table: file of measured latencies, see :mod:`espnet_todm.bench.components.measure`.
        subnet: what ``forward`` runs: a size's name or the file of a card; default all.
        blocks: widths of each block (:class:`BlockShape`) instead of uniform ones, as extracted models have them.

    Raises:
        UserError: an option has no meaning here, or a value is not allowed.
    """

    name: ClassVar[str] = NAME
    stock_name: ClassVar[str] = "conformer"
    stock_class: ClassVar[type[AbsEncoder]] = ConformerEncoder
    stock_inputs: ClassVar[Sequence[Optional[str]]] = STOCK_INPUTS
    fixed: ClassVar[Mapping[str, Any]] = {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "zero_triu": False,
        "ctc_trim": False,
        "qk_norm": False,
    }
    ignored: ClassVar[Sequence[str]] = ("positionwise_conv_kernel_size", "padding_idx", "use_flash_attn")
    cut_options: ClassVar[Sequence[str]] = ("ffn_chunks", "macaron_ffn_chunks", "conv_groups")
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        ATTENTION.name: ("heads", None),
        CONVOLUTION.name: ("conv", "conv_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }

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
        input_channels: Optional[int] = None,
        macaron_style: bool = False,
        rel_pos_type: str = "legacy",
        pos_enc_layer_type: str = "rel_pos",
        selfattention_layer_type: str = "rel_selfattn",
        activation_type: str = "swish",
        use_cnn_module: bool = True,
        cnn_module_kernel: int = 31,
        max_pos_emb_len: int = LONGEST,
        layer_drop_rate: float = 0.0,
        interctc_layer_idx: Optional[Sequence[int]] = None,
        interctc_use_conditioning: bool = False,
        stochastic_depth_rate: Union[float, Sequence[float]] = 0.0,
        ffn_chunks: int = 4,
        macaron_ffn_chunks: Optional[int] = None,
        conv_groups: int = 1,
        conv_norm: str = "batch_norm",
        head_dim: Optional[int] = None,
        adaptive_dropout: bool = True,
        convolution_first: bool = False,
        causal: bool = False,
        chunk: Optional[Mapping[str, Any]] = None,
        decode_chunk: Optional[Sequence[int]] = None,
        sizes: Optional[Mapping[str, SizeSpec]] = None,
        criterion: str = "params",
        latency_table: Optional[str] = None,
        subnet: Optional[str] = None,
        blocks: Optional[Sequence[Mapping[str, int]]] = None,
        **stock: Any,
    ) -> None:
        super().__init__(input_size, output_size)
        options = {k: v for k, v in locals().items() if k not in ("self", "stock", "__class__")}
        self.check(options, stock, lambda: self.take_chunks(options))
        conf = _block_conf(options)
        shapes = [_uniform_shape(options)] * num_blocks if blocks is None else parse_blocks(blocks, BlockShape)
        self.build(options, shapes, partial(ElasticConformerBlock, conf, sizes=tuple(map(str, sizes or ()))))
        self.finish(sizes, subnet, criterion, latency_table)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        return {**super().extracted_conf(subnet), "head_dim": head_width(self.options)}

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        uniform = self.uniform_shape(conf)
        if uniform is None:
            return None
        shape = BlockShape(**uniform)
        faithful = (
            shape.ffn_chunks > 0
            and shape.heads * conf["head_dim"] == conf["output_size"]
            and (not conf["macaron_style"] or shape.macaron_ffn == shape.ffn)
            and (
                not conf["use_cnn_module"] or (shape.conv == conf["output_size"] and conf["conv_norm"] == "batch_norm")
            )
            and self.has_stock_front()
            and not (conf["convolution_first"] or conf["causal"])
        )
        if not faithful:
            return None
        return {**self.stock_options(conf), "linear_units": shape.ffn, "attention_heads": shape.heads}


def _block_conf(options: Mapping[str, Any]) -> BlockConf:
    return BlockConf(
        size=options["output_size"],
        head_dim=head_width(options),
        kernel=options["cnn_module_kernel"],
        relative=relative_kind(options),
        macaron=options["macaron_style"],
        convolution=options["use_cnn_module"],
        conv_norm=options["conv_norm"],
        activation=options["activation_type"],
        dropout=options["dropout_rate"],
        attention_dropout=options["attention_dropout_rate"],
        adaptive_dropout=options["adaptive_dropout"],
        linear_units=options["linear_units"],
        convolution_first=options["convolution_first"],
        causal=options["causal"],
    )


def _uniform_shape(options: Mapping[str, Any]) -> BlockShape:
    macaron, cnn = options["macaron_style"], options["use_cnn_module"]
    chunks = options["ffn_chunks"]
    return BlockShape(
        macaron_ffn=options["linear_units"] if macaron else 0,
        macaron_chunks=(options["macaron_ffn_chunks"] or chunks) if macaron else 0,
        heads=options["attention_heads"],
        conv=options["output_size"] if cnn else 0,
        conv_groups=options["conv_groups"] if cnn else 0,
        ffn=options["linear_units"],
        ffn_chunks=chunks,
    )
