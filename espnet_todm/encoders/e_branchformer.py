"""``encoder: todm_e_branchformer``: ESPnet's E-Branchformer as a supernet (Kim et al., arXiv 2210.00077).

With all components it is ESPnet's own EBranchformerEncoder: same options, same parameter names, same outputs. So a
checkpoint of ``encoder: e_branchformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Optional

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_todm.components import Subnet
from espnet_todm.elastic.convolution import check_kernel
from espnet_todm.encoders.branches import (
    ATTENTION,
    CGMLP,
    FEED_FORWARD,
    MACARON,
    BlockShape,
    ElasticEBranchformerBlock,
    block_conf,
    check_cgmlp,
    has_macaron,
    uniform_shape,
)
from espnet_todm.encoders.frontends import STOCK_INPUTS, STOCK_INPUTS_1D
from espnet_todm.encoders.positions import LONGEST
from espnet_todm.encoders.stack import StackedEncoder, check_positive, head_width, parse_blocks
from espnet_todm.sizes import SizeSpec

NAME = "todm_e_branchformer"


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
        macaron = shape.ffn if has_macaron(conf) else 0
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
