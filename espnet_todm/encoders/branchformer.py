"""``encoder: todm_branchformer``: ESPnet's Branchformer as a supernet (Peng et al., arXiv 2207.02971).

Its blocks are E-Branchformer blocks without feed-forward modules and without a convolution in the merge. With all
components it equals ESPnet's BranchformerEncoder with ``merge_method: concat``, and has the same parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, Union

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder

from espnet_todm.encoders.branches import ATTENTION, CGMLP, BlockShape, BranchOptions, MergedBranches
from espnet_todm.encoders.frontends import STOCK_INPUTS
from espnet_todm.encoders.stack import StackedEncoder


@dataclass(frozen=True)
class BranchformerOptions(BranchOptions):
    """Options and defaults of ESPnet's BranchformerEncoder, and options of the supernet."""

    stochastic_depth_rate: Union[float, Sequence[float]] = 0.0

    fixed: ClassVar[Mapping[str, Any]] = {
        "use_attn": True,
        "use_cgmlp": True,
        "merge_method": "concat",  # other methods weight the branches jointly, so a branch could not be removed
        "zero_triu": False,
        "qk_norm": False,
    }
    # The first two belong to other merge methods.
    ignored: ClassVar[Sequence[str]] = ("cgmlp_weight", "attn_branch_drop_rate", "padding_idx", "use_flash_attn")


class ElasticBranchformerBlock(MergedBranches):
    """Attention and cgMLP in parallel, merged - norm."""

    def __init__(self, options: BranchformerOptions, shape: BlockShape) -> None:
        super().__init__(options.output_size, options.branches(shape), options.dropout_rate)


class TodmBranchformerEncoder(StackedEncoder):
    """Elastic Branchformer; its options are :class:`BranchformerOptions`."""

    name: ClassVar[str] = "todm_branchformer"
    options_type = BranchformerOptions
    block_type = ElasticBranchformerBlock
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        ATTENTION.name: ("heads", None),
        CGMLP.name: ("cgmlp", "cgmlp_groups"),
    }
    stock_name: ClassVar[str] = "branchformer"
    stock_class: ClassVar[type[AbsEncoder]] = BranchformerEncoder
    # Without an input layer, ESPnet's encoder has no position encoding.
    stock_inputs: ClassVar[Sequence[Optional[str]]] = tuple(name for name in STOCK_INPUTS if name is not None)

    def stock_widths(self, shape: BlockShape) -> Optional[dict[str, Any]]:
        return {"cgmlp_linear_units": shape.cgmlp} if shape.cgmlp_groups else None
