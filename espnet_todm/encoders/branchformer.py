"""``encoder: todm_branchformer``: ESPnet's Branchformer as a supernet (Peng et al., arXiv 2207.02971).

Its blocks are those of the E-Branchformer without feed-forward modules and without a convolution in the merge. With all
components it is ESPnet's own BranchformerEncoder with ``merge_method: concat``, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Optional, Union

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder

from espnet_todm.components import Subnet
from espnet_todm.encoders.branches import (
    ATTENTION,
    CGMLP,
    BlockShape,
    ElasticEBranchformerBlock,
    block_conf,
    check_cgmlp,
    uniform_shape,
)
from espnet_todm.encoders.frontends import STOCK_INPUTS
from espnet_todm.encoders.stack import StackedEncoder, head_width, parse_blocks
from espnet_todm.sizes import SizeSpec

# What its blocks lack, as options of the E-Branchformer.
LACKS = {
    "use_ffn": False,
    "macaron_ffn": False,
    "linear_units": 0,
    "ffn_chunks": 0,
    "macaron_ffn_chunks": 0,
    "merge_conv_kernel": 0,
    "ffn_activation_type": "swish",
}


class TodmBranchformerEncoder(StackedEncoder):
    """Elastic Branchformer. Options as in ESPnet's BranchformerEncoder, and

    Args:
        input_channels, cgmlp_groups, head_dim, adaptive_dropout: as in todm_e_branchformer.
        sizes, criterion, latency_table, subnet, blocks: as in todm_conformer.

    Raises:
        UserError: an option has no meaning here, or a value is not allowed.
    """

    name: ClassVar[str] = "todm_branchformer"
    stock_name: ClassVar[str] = "branchformer"
    stock_class: ClassVar[type[AbsEncoder]] = BranchformerEncoder
    # ESPnet's without an input layer has no positions.
    stock_inputs: ClassVar[Sequence[Optional[str]]] = tuple(name for name in STOCK_INPUTS if name is not None)
    cut_options: ClassVar[Sequence[str]] = ("cgmlp_groups",)
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        ATTENTION.name: ("heads", None),
        CGMLP.name: ("cgmlp", "cgmlp_groups"),
    }
    activation: ClassVar[Optional[str]] = None
    attention: ClassVar[Optional[str]] = "attention_layer_type"
    fixed: ClassVar[Mapping[str, Any]] = {
        "use_attn": True,
        "use_cgmlp": True,
        "merge_method": "concat",  # others weigh the branches against each other, so that none could be taken out
        "zero_triu": False,
        "qk_norm": False,
    }
    # The first two are for the other ways to merge.
    ignored: ClassVar[Sequence[str]] = ("cgmlp_weight", "attn_branch_drop_rate", "padding_idx", "use_flash_attn")

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
        stochastic_depth_rate: Union[float, Sequence[float]] = 0.0,
        input_channels: Optional[int] = None,
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
        self.check(options, stock, lambda: check_cgmlp(options))
        whole = {**options, **LACKS}
        shapes = [uniform_shape(whole)] * num_blocks if blocks is None else parse_blocks(blocks, BlockShape)
        self.build(options, shapes, partial(ElasticEBranchformerBlock, block_conf(whole)))
        self.finish(sizes, subnet, criterion, latency_table)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        return {**super().extracted_conf(subnet), "head_dim": head_width(self.options)}

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        uniform = self.uniform_shape(conf)
        if uniform is None or not self.has_stock_front():
            return None
        shape = BlockShape(**uniform)
        if not shape.cgmlp_groups or shape.heads * conf["head_dim"] != conf["output_size"]:
            return None
        return {**self.stock_options(conf), "attention_heads": shape.heads, "cgmlp_linear_units": shape.cgmlp}
