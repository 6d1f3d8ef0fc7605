"""All encoders of this package by their names in configurations. A new encoder needs a file and one line here."""

from __future__ import annotations

import importlib

from espnet_todm.encoders.supernet import SupernetEncoder

# module.class
CLASSES = (
    "conformer.TodmConformerEncoder",
    "e_branchformer.TodmEBranchformerEncoder",
    "branchformer.TodmBranchformerEncoder",
    "transformer.TodmTransformerEncoder",
    "mh_ssm.TodmMhSsmEncoder",
)


def encoders() -> dict[str, type[SupernetEncoder]]:
    """All encoder classes by name, in lower case for ESPnet's parsers. Imports are local: they load parts of ESPnet."""
    known: dict[str, type[SupernetEncoder]] = {}
    for path in CLASSES:
        module, _, name = path.partition(".")
        encoder = getattr(importlib.import_module(f"espnet_todm.encoders.{module}"), name)
        known[encoder.name] = encoder
    return known
