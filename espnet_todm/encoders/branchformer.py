"""``encoder: todm_branchformer``: ESPnet's Branchformer as a supernet (Peng et al., arXiv 2207.02971).

Its blocks are those of the E-Branchformer without feed-forward modules and without a convolution in the merge. With all
components it is ESPnet's own BranchformerEncoder with ``merge_method: concat``, under the same names.
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
    """Options as in ESPnet's BranchformerEncoder, with the same defaults, and those that say how it is cut."""

    stochastic_depth_rate: Union[float, Sequence[float]] = 0.0

    fixed: ClassVar[Mapping[str, Any]] = {
        "use_attn": True,
        "use_cgmlp": True,
        "merge_method": "concat",  # others weigh the branches against each other, so that none could be taken out
        "zero_triu": False,
        "qk_norm": False,
    }
    # The first two are for the other ways to merge.
    ignored: ClassVar[Sequence[str]] = ("cgmlp_weight", "attn_branch_drop_rate", "padding_idx", "use_flash_attn")


class ElasticBranchformerBlock(MergedBranches):
    """Attention beside cgMLP, merged - norm."""

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
    # ESPnet's without an input layer has no positions.
    stock_inputs: ClassVar[Sequence[Optional[str]]] = tuple(name for name in STOCK_INPUTS if name is not None)

    def stock_widths(self, shape: BlockShape) -> Optional[dict[str, Any]]:
        return {"cgmlp_linear_units": shape.cgmlp} if shape.cgmlp_groups else None
