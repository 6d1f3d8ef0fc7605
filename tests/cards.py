"""Cards of sizes for tests that look at a few of their entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espnet_todm.card import CARD, FORMAT
from espnet_todm.util.files import write_json


def write_card(folder: Path, name: str, **entries: Any) -> None:
    """A card with these entries, and others that say nothing."""
    nothing = {"cost": {}, "encoder": "todm_conformer", "encoder_conf": {}, "vocabulary": {}, "kept": {}}
    write_json(folder / CARD, {"format": FORMAT, "name": name, **nothing, **entries})
