"""Colours that can be read on both grounds and told apart."""

from __future__ import annotations

import pytest

from espnet_todm.util.palette import GROUND, SERIES, STYLES, variables


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_series_and_words_stand_out_from_the_ground(dark: bool) -> None:
    ground = luminance(GROUND["page"][dark])
    for colour in [*(pair[dark] for pair in SERIES), *(GROUND[role][dark] for role in ("text", "muted", "link"))]:
        light, deep = sorted((ground, luminance(colour)), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, colour


def test_no_two_series_are_alike() -> None:
    assert len(set(SERIES)) == len(SERIES) == len({(mark, line) for _, mark, line in STYLES})


def test_variables_of_a_page() -> None:
    light, dark = variables(False), variables(True)
    assert light.keys() == dark.keys() and light["series-1"] == STYLES[0][0]
    assert light["heat"] == "0 114 178"
