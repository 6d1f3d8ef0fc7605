"""Pictures that live inside a page: matplotlib figures as SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from espnet_todm.util.palette import GROUND, SERIES, STYLES

INCHES = (4.6, 3.5)
"""Width and height of a picture: so narrow that its letters can be read on a telephone, where it is hardly shrunk."""

_THEME = {
    "#000000": "currentColor",
    "#b0b0b0": "var(--rule)",  # matplotlib's own grid
    **{light: f"var(--{role})" for role, (light, _) in GROUND.items()},
    **{light: f"var(--series-{number})" for number, (light, _) in enumerate(SERIES, 1)},
}
"""Colour that a figure is drawn in -> what the page calls it."""


class Picture(NamedTuple):
    """An ``<svg>`` element, and the words under it."""

    svg: str
    caption: str


@contextmanager
def plot_style(name: str) -> Iterator[None]:
    """Draw and save within it. name: unique on the page, as are then the identifiers inside the picture.

    Text stays text, for search and copying; dollars are dollars, since names of sizes and sets are not formulas.
    """
    options: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "axes.prop_cycle": cycler(color=[color for color, _, _ in STYLES]),
        "font.size": 11,
        "legend.fontsize": 10,
    }
    with matplotlib.rc_context(options):
        yield


def inline_svg(figure: Figure, description: str) -> str:
    """The figure as an ``<svg>`` element; description: what it shows, for those who cannot see it.

    It carries no size, style sheet, metadata or font of its own. Call it within ``plot_style``.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg role="img" aria-label="{_safe(description)}" \1>', text
    )
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)  # as older releases write it
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _THEME.get(found[0], found[0]), text)


def _safe(text: str) -> str:
    """``text`` for an attribute, and for the replacement of a regular expression."""
    return escape(text).replace("\\", "\\\\")
