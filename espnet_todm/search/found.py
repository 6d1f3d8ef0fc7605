"""Write a card for each subnet of a search's Pareto set. The subnets can be extracted from their cards."""

from __future__ import annotations

from collections.abc import Iterable

from espnet_todm.card import make_card
from espnet_todm.deploy.extract import Supernet
from espnet_todm.search.evolution import Trial
from espnet_todm.util.files import PathLike, atomic_directory, write_json


def write_cards(supernet: Supernet, trials: Iterable[Trial], split: str, folder: PathLike) -> list[str]:
    """Replace ``folder`` by a new one with <name>.json for each trial. Returns the names of the files.

    bin.extract --sizes and the option ``subnet`` of encoders take these files. The card's ``search`` has the subnet's scores
    on the set ``split`` of the search.
    """
    table, alone, names = supernet.model.component_table(), supernet.encoder.component_table(), []
    with atomic_directory(folder) as new:
        for trial in trials:
            conf, tokens = supernet.encoder.extracted_conf(trial.subnet), list(supernet.model.token_list)
            card = make_card(trial.subnet, table, supernet.encoder.name, conf, tokens, supernet.origin(), alone)
            found = {"set": split, "scores": dict(trial.scores), "proposed_by": trial.by}
            names.append(f"{trial.subnet.name}.json")
            write_json(new / names[-1], {**card, "search": found})
    return names
