"""Colours of the report's page and of all pictures, and their files. A size, set or method has one colour everywhere.

The series follow Okabe and Ito, whose colours colour-blind readers tell apart, darkened for light ground and lightened for
dark ground until each has a contrast of 4.5 to it. Marks and lines differ too, for print without colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espnet_todm.util.files import PathLike, atomic_path

# Roles of a page -> (on light ground, on dark ground).
GROUND = {
    "page": ("#ffffff", "#14181c"),
    "text": ("#1c2126", "#e4e8ec"),
    "muted": ("#59636e", "#a0aab4"),
    "rule": ("#d4d9df", "#3a424b"),
    "panel": ("#f4f6f8", "#1d2329"),
    "link": ("#0b57b0", "#79b8ff"),
}
SERIES = (
    ("#0072b2", "#5cb8f2"),
    ("#c75000", "#ff9557"),
    ("#00805c", "#3dcca0"),
    ("#b0508c", "#eb9fce"),
    ("#1c2126", "#e4e8ec"),
    ("#946400", "#ecc04c"),
)
RULE = GROUND["rule"][0]
HEAT = SERIES[0]  # what a heat map's full cell is coloured with

_MARKS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":", "-", "--")
# Of matplotlib: (colour, mark, line) of each series.
STYLES = tuple((light, mark, line) for (light, _), mark, line in zip(SERIES, _MARKS, _LINES))


def variables(dark: bool) -> dict[str, str]:
    """CSS custom properties of a page without their dashes: the roles, ``series-1`` and on, and ``heat`` as "R G B"."""
    colours = {role: pair[dark] for role, pair in GROUND.items()}
    colours.update({f"series-{number}": pair[dark] for number, pair in enumerate(SERIES, 1)})
    heat = HEAT[dark].lstrip("#")
    return {**colours, "heat": " ".join(str(int(heat[i : i + 2], 16)) for i in (0, 2, 4))}


def save_png(figure: Any, path: PathLike, dpi: int = 160) -> Path:
    """Write a figure of matplotlib, atomically; returns the file's path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    return Path(path)
