"""All encoders of this package by the names that configurations call them by. A new one is a file and a line here."""

from __future__ import annotations

import importlib

from espnet_todm.encoders.supernet import SupernetEncoder

# Module of this package and class.
CLASSES = (
    "conformer.TodmConformerEncoder",
    "e_branchformer.TodmEBranchformerEncoder",
    "branchformer.TodmBranchformerEncoder",
    "transformer.TodmTransformerEncoder",
    "mh_ssm.TodmMhSsmEncoder",
)


def encoders() -> dict[str, type[SupernetEncoder]]:
    """Name in lower case, as ESPnet's parsers want it -> class. Imported on call: each pulls in a part of ESPnet."""
    known: dict[str, type[SupernetEncoder]] = {}
    for path in CLASSES:
        module, _, name = path.partition(".")
        encoder = getattr(importlib.import_module(f"espnet_todm.encoders.{module}"), name)
        known[encoder.name] = encoder
    return known
