"""All selections, by their names in ``selection:``. A new selection needs one file and one line here."""

from __future__ import annotations

import importlib
from typing import Any

from espnet_todm.selection.base import Selection
from espnet_todm.util.checks import check_choice

# Name -> module in this package, and class.
SELECTIONS = {
    "ortho_softmax": "ortho_softmax.OrthoSoftmax",
    "top_k": "top_k.TopK",
    "zero_out": "zero_out.ZeroOut",
    "random_nested": "random_nested.RandomNested",
    "uniform": "uniform.Uniform",
}


def find_selection(name: Any) -> type[Selection]:
    """The selection class of this name. Raises UserError for an unknown name."""
    check_choice("selection", name, SELECTIONS)
    module, _, cls = SELECTIONS[name].partition(".")
    found: type[Selection] = getattr(importlib.import_module(f"espnet_todm.selection.{module}"), cls)
    return found
