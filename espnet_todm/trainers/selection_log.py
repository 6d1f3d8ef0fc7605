"""Files that a learned selection writes into the experiment's folder: its history and the cards of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import torch

from espnet_todm.card import make_card
from espnet_todm.components import FULL, Subnet
from espnet_todm.util.files import to_json, write_json

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel
    from espnet_todm.selection.base import Selection

HISTORY = "selection.jsonl"
CARDS = "sizes"
_POINTS = 50  # lines of the history over the first stage


class SelectionLog:
    """Writes into ``folder``. With None, as on all ranks but the first, it writes nothing."""

    def __init__(self, folder: Optional[Path]) -> None:
        self.folder = folder

    @torch.no_grad()
    def record(self, selection: Selection, step: int) -> None:
        """Append one line at regular intervals: the step, and each size's soft weights of all units.

        A resumed run may write a step again. Readers take the last line of each step.
        """
        if self.folder is None or step % max(1, selection.steps // _POINTS):
            return
        weights = {size: [round(w, 4) for w in selection.weights(size, step).tolist()] for size in selection.shares}
        with (self.folder / HISTORY).open("a", encoding="utf-8") as history:
            history.write(to_json({"step": step, "weights": weights}) + "\n")

    def write_cards(self, model: TodmModel, subnets: Mapping[str, Subnet]) -> None:
        """Write ``sizes/<name>.json`` for every chosen size except the full one."""
        if self.folder is None:
            return
        table = model.component_table()
        for name, subnet in subnets.items():
            if name != FULL:
                conf = model.encoder.extracted_conf(subnet)
                source = {"experiment": self.folder.name}
                card = make_card(subnet, table, model.encoder.name, conf, model.token_list, source)
                (self.folder / CARDS).mkdir(exist_ok=True)
                write_json(self.folder / CARDS / f"{name}.json", card)
