"""The supernet encoders that there are, by the names that configurations call them by."""

from __future__ import annotations

from espnet_todm.encoders.branchformer import TodmBranchformerEncoder
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.encoders.e_branchformer import TodmEBranchformerEncoder
from espnet_todm.encoders.mh_ssm import TodmMhSsmEncoder
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.encoders.transformer import TodmTransformerEncoder

ENCODERS: dict[str, type[SupernetEncoder]] = {
    encoder.name: encoder
    for encoder in (
        TodmConformerEncoder,
        TodmEBranchformerEncoder,
        TodmBranchformerEncoder,
        TodmTransformerEncoder,
        TodmMhSsmEncoder,
    )
}
