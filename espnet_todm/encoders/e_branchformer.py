"""``encoder: todm_e_branchformer``: ESPnet's E-Branchformer as a supernet (Kim et al., arXiv 2210.00077).

With all components it equals ESPnet's EBranchformerEncoder: same options, same parameter names, same outputs. So a
checkpoint of ``encoder: e_branchformer`` loads into it with ``--init_param``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Optional

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_todm.elastic.block import ACTIVATIONS, Activation
from espnet_todm.elastic.convolution import check_kernel
from espnet_todm.encoders.branches import (
    ATTENTION,
    CGMLP,
    FEED_FORWARD,
    MACARON,
    BlockShape,
    BranchOptions,
    MergedBranches,
)
from espnet_todm.encoders.frontends import STOCK_INPUTS, STOCK_INPUTS_1D
from espnet_todm.encoders.options import CUTS, Checks, InterCtcOptions, check_positive
from espnet_todm.encoders.positions import LONGEST
from espnet_todm.encoders.stack import StackedEncoder


@dataclass(frozen=True)
class EBranchformerOptions(BranchOptions, InterCtcOptions):
    """Options and defaults of ESPnet's EBranchformerEncoder, and options of the supernet."""

    use_ffn: bool = False
    macaron_ffn: bool = False  # as in ESPnet, only with use_ffn
    macaron_ffn_chunks: Optional[int] = field(default=None, metadata=CUTS)  # default: as ffn_chunks
    ffn_activation_type: Activation = "swish"
    merge_conv_kernel: int = 3
    max_pos_emb_len: int = LONGEST

    fixed: ClassVar[Mapping[str, Any]] = {
        "positionwise_layer_type": "linear",
        "zero_triu": False,
        "qk_norm": False,
        "gradient_checkpoint_layers": [],
    }
    ignored: ClassVar[Sequence[str]] = ("padding_idx", "use_flash_attn")

    @property
    def has_macaron(self) -> bool:
        return self.use_ffn and self.macaron_ffn

    def checks(self) -> Checks:
        return [*super().checks(), self._check_merge]

    def _check_merge(self) -> None:
        check_positive(self, "merge_conv_kernel")
        check_kernel("merge_conv_kernel", self.merge_conv_kernel)

    def shape(self) -> BlockShape:
        shape, units = super().shape(), self.linear_units
        if self.use_ffn:
            shape = replace(shape, ffn=units, ffn_chunks=self.ffn_chunks)
        if self.has_macaron:
            shape = replace(shape, macaron_ffn=units, macaron_chunks=self.macaron_ffn_chunks or self.ffn_chunks)
        return shape


class ElasticEBranchformerBlock(MergedBranches):
    """Macaron FFN - attention and cgMLP in parallel, merged with a convolution - FFN - norm."""

    def __init__(self, options: EBranchformerOptions, shape: BlockShape) -> None:
        size, modules = options.output_size, options.branches(shape)
        activation = ACTIVATIONS[options.ffn_activation_type]()
        if shape.ffn_chunks:
            modules[FEED_FORWARD] = options.feed_forward(shape.ffn, shape.ffn_chunks, activation)
        if shape.macaron_chunks:
            modules[MACARON] = options.feed_forward(shape.macaron_ffn, shape.macaron_chunks, activation)
        ff_scale = 0.5 if options.has_macaron else 1.0
        super().__init__(size, modules, options.dropout_rate, ff_scale, options.merge_conv_kernel)


class TodmEBranchformerEncoder(StackedEncoder):
    """Elastic E-Branchformer; its options are :class:`EBranchformerOptions`."""

    name: ClassVar[str] = "todm_e_branchformer"
    options_type = EBranchformerOptions
    options: EBranchformerOptions
    block_type = ElasticEBranchformerBlock
    norm_between: ClassVar[bool] = False
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]] = {
        MACARON.name: ("macaron_ffn", "macaron_chunks"),
        ATTENTION.name: ("heads", None),
        CGMLP.name: ("cgmlp", "cgmlp_groups"),
        FEED_FORWARD.name: ("ffn", "ffn_chunks"),
    }
    stock_name: ClassVar[str] = "e_branchformer"
    stock_class: ClassVar[type[AbsEncoder]] = EBranchformerEncoder
    stock_inputs: ClassVar[Sequence[Optional[str]]] = (*STOCK_INPUTS, *STOCK_INPUTS_1D)

    def stock_widths(self, shape: BlockShape) -> Optional[dict[str, Any]]:
        macaron = shape.ffn if self.options.has_macaron else 0
        if not shape.cgmlp_groups or shape.macaron_ffn != macaron:
            return None
        units = {"linear_units": shape.ffn} if shape.ffn else {}
        return {"cgmlp_linear_units": shape.cgmlp, "use_ffn": shape.ffn > 0, **units}
