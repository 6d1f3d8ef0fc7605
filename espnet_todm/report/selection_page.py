"""The analysis of one experiment's sizes, from its files: what stage 15 adds to the report and a command shows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_todm.card import read_card
from espnet_todm.components import FULL, Key, Subnet
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.espnet.registry import register
from espnet_todm.report.selection import (
    Choice,
    choices,
    describe,
    draw_history,
    plot_choices,
    read_history,
    share_table,
)
from espnet_todm.selection.units import make_units
from espnet_todm.trainers.selection_log import HISTORY
from espnet_todm.util.files import PathLike
from espnet_todm.util.markdown import link
from espnet_todm.util.palette import save_png


class Selection(NamedTuple):
    """What the sizes of an experiment keep, and the soft weights over its first stage with their units, if it had one."""

    chosen: list[Choice]
    history: dict[int, dict[str, list[float]]]
    units: Sequence[Sequence[Key]]


def load_selection(experiment: PathLike) -> Selection:
    """Read ``config.yaml``, ``subnets/*/card.json`` and ``selection.jsonl``.

    Raises UserError when the experiment has no config, or no extracted sizes but the full one.
    """
    folder = Path(experiment)
    encoder, granularity = load_encoder(folder)
    table = encoder.component_table()
    cards = [read_card(path) for path in sorted(folder.glob("subnets/*/card.json"))]
    if not cards:
        raise UserError(f"{folder}: no subnets/<size>/card.json; extract the sizes first (stage 12)")
    sizes = {str(card["name"]): Subnet.from_json(str(card["name"]), card["kept"]) for card in cards}
    sizes = dict(sorted(sizes.items(), key=lambda item: -table.cost(item[1]).params))
    chosen = choices(table, sizes)
    if not chosen:
        raise UserError(f"{folder}: only the size {FULL!r} was extracted; there is nothing to compare it with")
    history = read_history(folder / HISTORY) if (folder / HISTORY).is_file() else {}
    units = make_units(table, granularity, "params").keys  # which are the same by every criterion
    return Selection(chosen, history, units)


def selection_section(experiment: PathLike, plots: PathLike, home: PathLike) -> str:
    """Markdown with the heat maps of all extracted sizes; pictures go to ``plots`` and are linked from ``home``.

    Raises what ``load_selection`` raises.
    """
    chosen, history, units = load_selection(experiment)
    name = Path(experiment).resolve().name
    pictures = [("components kept", plot_choices(chosen, Path(plots) / f"{name}_components.png"))]
    if history:
        picture = save_png(draw_history(history, units), Path(plots) / f"{name}_selection.png", dpi=150)
        pictures.append(("soft weights over the first stage", picture))
    links = [f"![{text}]({link(path, home)})" for text, path in pictures]
    texts = [describe(choice) for choice in chosen]
    return "\n".join(["### Components kept", share_table(chosen).markdown(), "\n\n".join([*texts, *links]), ""])


def load_encoder(folder: Path) -> tuple[SupernetEncoder, str]:
    """The experiment's supernet encoder with fresh weights, and what its selection chooses among."""
    from espnet_todm.bench.components.measure import build_encoder
    from espnet_todm.espnet.load import read_config

    register()
    config = read_config(folder / CONFIG)
    return build_encoder(config), (config.get("subnet_trainer_conf") or {}).get("granularity", "component")
