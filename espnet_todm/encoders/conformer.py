"""``encoder: todm_conformer``: ESPnet's Conformer as a supernet.

With all components it is ESPnet's own ConformerEncoder: same options, same parameter names, same outputs. So a checkpoint
of ``encoder: conformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Optional

from espnet.nets.pytorch_backend.transformer.embedding import PositionalEncoding, RelPositionalEncoding
from torch import Tensor, nn

from espnet_todm.components import Cost, Subnet
from espnet_todm.elastic.block import ACTIVATIONS, LAYER_NORM_EPS, BlockConf, BlockShape, ElasticConformerBlock
from espnet_todm.encoders.frontends import INPUT_LAYERS, subsampling_cost
from espnet_todm.encoders.supernet import (
    FRAMES_PER_SECOND,
    REFERENCE_SECONDS,
    SUPERNET_OPTIONS,
    Front,
    SupernetEncoder,
    length_mask,
)
from espnet_todm.errors import UserError
from espnet_todm.sizes import SizeSpec

# (pos_enc_layer_type, selfattention_layer_type) -> position encoding; None: no positions at all.
POSITIONS = {
    ("rel_pos", "rel_selfattn"): RelPositionalEncoding,
    ("abs_pos", "selfattn"): PositionalEncoding,
    ("none", "selfattn"): None,
}
# Options of ESPnet's Conformer that a supernet has in one form only.
FIXED_OPTIONS: dict[str, Any] = {
    "normalize_before": True,
    "concat_after": False,
    "positionwise_layer_type": "linear",
    "zero_triu": False,
    "interctc_layer_idx": [],
    "interctc_use_conditioning": False,
    "ctc_trim": False,
    "stochastic_depth_rate": 0.0,
    "layer_drop_rate": 0.0,
    "qk_norm": False,
}
IGNORED_OPTIONS = ("positionwise_conv_kernel_size", "padding_idx", "use_flash_attn", "max_pos_emb_len")


class NoPositions(nn.Module):
    """Stands in for a position encoding where there is none."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class TodmConformerEncoder(SupernetEncoder):
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
        sizes: named sizes, see :func:`espnet_todm.sizes.resolve_sizes`.
        criterion: what a size given as a plain share is a share of: "params", "flops" or "latency".
        latency_table: file of measured latencies, see :mod:`espnet_todm.deploy.latency`.
        subnet: what ``forward`` runs: a size's name or the file of a card; default all.
        blocks: widths of each block (:class:`BlockShape`) instead of uniform ones, as extracted models have them.

    Raises:
        UserError: an option has no meaning here, or a value is not allowed.
    """

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
        input_layer: str = "conv2d",
        input_channels: Optional[int] = None,
        macaron_style: bool = False,
        rel_pos_type: str = "legacy",
        pos_enc_layer_type: str = "rel_pos",
        selfattention_layer_type: str = "rel_selfattn",
        activation_type: str = "swish",
        use_cnn_module: bool = True,
        cnn_module_kernel: int = 31,
        ffn_chunks: int = 4,
        macaron_ffn_chunks: Optional[int] = None,
        conv_groups: int = 1,
        conv_norm: str = "batch_norm",
        head_dim: Optional[int] = None,
        adaptive_dropout: bool = True,
        convolution_first: bool = False,
        sizes: Optional[Mapping[str, SizeSpec]] = None,
        criterion: str = "params",
        latency_table: Optional[str] = None,
        subnet: Optional[str] = None,
        blocks: Optional[Sequence[Mapping[str, int]]] = None,
        **stock: Any,
    ) -> None:
        super().__init__(input_size, output_size)
        options = {k: v for k, v in locals().items() if k not in ("self", "stock", "__class__")}
        self._options: dict[str, Any] = options
        _check_stock(stock)
        _check_options(options)
        encoding = POSITIONS[pos_enc_layer_type, selfattention_layer_type] or NoPositions
        self._input = INPUT_LAYERS[input_layer]
        positions = encoding(output_size, positional_dropout_rate)
        self.embed = self._input.make(input_size, output_size, dropout_rate, positions, input_channels)
        shapes = _parse_blocks(blocks) if blocks is not None else [_uniform_shape(options)] * num_blocks
        self.shapes = tuple(shapes)
        self.encoders = nn.ModuleList(
            ElasticConformerBlock(_block_conf(options), shape, tuple(sizes or ())) for shape in shapes
        )
        self.after_norm = nn.LayerNorm(output_size, eps=LAYER_NORM_EPS)
        self.finish(sizes, subnet, criterion, latency_table)

    def front(self, features: Tensor, lengths: Tensor) -> Front:
        self._input.check_length(features.size(1))
        embedded, _ = self.embed(features, length_mask(lengths, features.size(1)))
        hidden, positions = embedded if isinstance(embedded, tuple) else (embedded, None)
        lengths = self._input.lengths(lengths)
        return Front(hidden, positions, lengths, length_mask(lengths, hidden.size(1)))

    def finalise(self, hidden: Tensor) -> Tensor:
        return self.after_norm(hidden)

    def subsampled(self, frames: int) -> int:
        return self._input.subsampled(frames)

    def front_cost(self) -> Cost:
        cost = subsampling_cost(self.embed, int(REFERENCE_SECONDS * FRAMES_PER_SECOND), self.input_size)
        norm = sum(p.numel() for p in self.after_norm.parameters())
        return Cost(cost.params + norm, cost.flops / REFERENCE_SECONDS)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        small = [self._kept_shape(self.shapes[layer], modules) for layer, modules in sorted(subnet.layers.items())]
        of_supernet = (*SUPERNET_OPTIONS, "ffn_chunks", "macaron_ffn_chunks", "conv_groups")
        conf = {key: value for key, value in self._options.items() if key not in of_supernet}
        head_dim = conf["head_dim"] or conf["output_size"] // conf["attention_heads"]
        return {**conf, "head_dim": head_dim, "num_blocks": len(small), "blocks": [asdict(shape) for shape in small]}

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        shapes = {tuple(sorted(shape.items())) for shape in conf["blocks"]}
        if len(shapes) != 1:
            return None
        shape = BlockShape(**conf["blocks"][0])
        faithful = (
            shape.ffn_chunks > 0
            and shape.heads * conf["head_dim"] == conf["output_size"]
            and (not conf["macaron_style"] or shape.macaron_ffn == shape.ffn)
            and (
                not conf["use_cnn_module"] or (shape.conv == conf["output_size"] and conf["conv_norm"] == "batch_norm")
            )
            and conf["pos_enc_layer_type"] != "none"
            and self._input.stock
            and conf["input_channels"] in (None, conf["output_size"])
            and not conf["convolution_first"]
        )
        if not faithful:
            return None
        ours = (
            "blocks",
            "conv_norm",
            "head_dim",
            "adaptive_dropout",
            "convolution_first",
            "input_size",
            "input_channels",
        )
        kept = {k: v for k, v in conf.items() if k not in ours}
        return {**kept, "linear_units": shape.ffn, "attention_heads": shape.heads}

    @staticmethod
    def _kept_shape(full: BlockShape, modules: Mapping[str, tuple[int, ...]]) -> BlockShape:
        def cut(width: int, components: int, module: str) -> tuple[int, int]:
            kept = len(modules.get(module, ()))
            return (width // components * kept if components else 0), kept

        macaron, macaron_chunks = cut(full.macaron_ffn, full.macaron_chunks, "feed_forward_macaron")
        conv, groups = cut(full.conv, full.conv_groups, "conv_module")
        ffn, chunks = cut(full.ffn, full.ffn_chunks, "feed_forward")
        heads = len(modules.get("self_attn", ()))
        return replace(
            full,
            macaron_ffn=macaron,
            macaron_chunks=macaron_chunks,
            heads=heads,
            conv=conv,
            conv_groups=groups,
            ffn=ffn,
            ffn_chunks=chunks,
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for a value that no Conformer of ours can have."""
    input_layer, activation = options["input_layer"], options["activation_type"]
    positions, attention = options["pos_enc_layer_type"], options["selfattention_layer_type"]
    size, heads = options["output_size"], options["attention_heads"]
    if input_layer not in INPUT_LAYERS:
        raise UserError(f"input_layer: {input_layer!r} is unknown; allowed: {', '.join(INPUT_LAYERS)}")
    if (positions, attention) not in POSITIONS:
        pairs = "; ".join(" with ".join(pair) for pair in POSITIONS)
        raise UserError(
            f"pos_enc_layer_type: {positions!r} with selfattention_layer_type: {attention!r} is not possible;"
            f" allowed: {pairs}"
        )
    if activation not in ACTIVATIONS:
        raise UserError(f"activation_type: {activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    channels = options["input_channels"]
    if channels is not None and (not isinstance(channels, int) or channels < 1):
        raise UserError(f"input_channels: {channels!r} must be a whole number above 0")
    if options["head_dim"] is None and size % heads:
        raise UserError(f"attention_heads: {heads} does not divide output_size: {size}")
    if positions == "rel_pos" and options["rel_pos_type"] != "latest":
        # ESPnet's default is "legacy", whose weights fit ours by name and shape but mean another function.
        given = options["rel_pos_type"]
        raise UserError(f"rel_pos_type: {given!r} is not possible in a supernet; say rel_pos_type: latest")


def _block_conf(options: Mapping[str, Any]) -> BlockConf:
    return BlockConf(
        size=options["output_size"],
        head_dim=options["head_dim"] or options["output_size"] // options["attention_heads"],
        kernel=options["cnn_module_kernel"],
        relative=options["pos_enc_layer_type"] == "rel_pos",
        macaron=options["macaron_style"],
        convolution=options["use_cnn_module"],
        conv_norm=options["conv_norm"],
        activation=options["activation_type"],
        dropout=options["dropout_rate"],
        attention_dropout=options["attention_dropout_rate"],
        adaptive_dropout=options["adaptive_dropout"],
        convolution_first=options["convolution_first"],
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


def _parse_blocks(blocks: Sequence[Mapping[str, int]]) -> list[BlockShape]:
    names = [field.name for field in fields(BlockShape)]
    for number, block in enumerate(blocks):
        if sorted(block) != sorted(names):
            raise UserError(f"blocks[{number}]: has the keys {', '.join(block)}; needed: {', '.join(names)}")
    return [BlockShape(**block) for block in blocks]


def _check_stock(stock: Mapping[str, Any]) -> None:
    """Options of ESPnet's Conformer that are not ours: fine at the one value that a supernet has."""
    for key, value in stock.items():
        if key in IGNORED_OPTIONS:
            continue
        if key not in FIXED_OPTIONS:
            raise UserError(f"encoder_conf: unknown option {key!r} for todm_conformer")
        if value != FIXED_OPTIONS[key]:
            raise UserError(f"{key}: {value!r} is not possible in a supernet; allowed: {FIXED_OPTIONS[key]!r}")
