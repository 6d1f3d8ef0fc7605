"""All encoders of this package by the names that configurations call them by."""

from __future__ import annotations

from espnet_todm.encoders.supernet import SupernetEncoder


def encoders() -> dict[str, type[SupernetEncoder]]:
    """Name in lower case, as ESPnet's parsers want it -> class. Imported on call: each pulls in a part of ESPnet."""
    from espnet_todm.encoders.branchformer import TodmBranchformerEncoder
    from espnet_todm.encoders.conformer import TodmConformerEncoder
    from espnet_todm.encoders.e_branchformer import TodmEBranchformerEncoder
    from espnet_todm.encoders.mh_ssm import TodmMhSsmEncoder
    from espnet_todm.encoders.transformer import TodmTransformerEncoder

    known: tuple[type[SupernetEncoder], ...] = (
        TodmConformerEncoder,
        TodmEBranchformerEncoder,
        TodmBranchformerEncoder,
        TodmTransformerEncoder,
        TodmMhSsmEncoder,
    )
    return {encoder.name: encoder for encoder in known}
