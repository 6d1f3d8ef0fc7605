"""Which components each size keeps: heat maps, shares by kind and depth, a short text, and how the choice came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from espnet_todm.components import FULL, ComponentTable, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.sizes import module_sizes
from espnet_todm.util.files import PathLike, read_lines
from espnet_todm.util.markdown import Table
from espnet_todm.util.palette import GROUND, HEAT, STYLES, save_png

NAMES = {
    "feed_forward_macaron": "FFN 1",
    "self_attn": "attention",
    "conv_module": "convolution",
    "feed_forward": "FFN 2",
    "state_space": "state space",
    "cgmlp": "cgMLP",
}


@dataclass(frozen=True)
class Choice:
    """What one size keeps: ``kept`` (layers, modules), the share of each module's components, in [0, 1]."""

    size: str
    modules: tuple[str, ...]
    kept: np.ndarray


def choices(table: ComponentTable, sizes: Mapping[str, Subnet]) -> list[Choice]:
    """One for each size but the full one, smallest last, as ``sizes`` has them."""
    totals = module_sizes(table)
    modules = tuple(dict.fromkeys(module for _, module in totals))
    result = []
    for name, subnet in sizes.items():
        if name == FULL:
            continue
        kept = np.zeros((table.num_layers, len(modules)))
        for (layer, module), total in totals.items():
            count = len(subnet.layers.get(layer, {}).get(module, ()))
            kept[layer, modules.index(module)] = count / total
        result.append(Choice(name, modules, kept))
    return result


def plot_choices(chosen: Sequence[Choice], path: PathLike) -> Path:
    """One heat map per size, layers from the input (bottom) upwards, every cell with its share in percent."""
    layers, modules = chosen[0].kept.shape
    figure = Figure(figsize=(1.2 + 0.95 * modules * len(chosen), 1.4 + 0.34 * layers), layout="constrained")
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for panel, choice in zip(panels, chosen):
        image = panel.imshow(
            choice.kept,
            cmap=LinearSegmentedColormap.from_list("heat", [GROUND["page"][0], HEAT[0]]),
            vmin=0,
            vmax=1,
            origin="lower",
            aspect="auto",
        )
        for (layer, module), share in np.ndenumerate(choice.kept):
            colour = GROUND["page"][0] if share > 0.6 else GROUND["text"][0]
            panel.text(module, layer, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        panel.set_title(choice.size)
        panel.set_xticks(range(modules), [NAMES.get(name, name) for name in choice.modules], rotation=45, ha="right")
    panels[0].set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
    panels[0].set_ylabel("block (1 is next to the input)")
    figure.colorbar(image, ax=panels, label="components kept", format=lambda share, _: f"{100 * share:.0f}%")
    return save_png(figure, path, dpi=150)


def share_table(chosen: Sequence[Choice]) -> Table:
    """The share of components that each size keeps, by kind of module and by third of the depth."""
    thirds = ("first third", "middle third", "last third")
    names = [NAMES.get(name, name) for name in chosen[0].modules]
    rows = []
    for choice in chosen:
        depth = [part.mean() if part.size else float("nan") for part in np.array_split(choice.kept, 3)]
        rows.append([choice.size, *(f"{100 * share:.0f}%" for share in [*choice.kept.mean(0), *depth])])
    return Table(["size", *names, *thirds], rows)


def describe(choice: Choice) -> str:
    """A few sentences on what one size keeps and drops."""
    by_kind = sorted(zip(choice.kept.mean(0), (NAMES.get(name, name) for name in choice.modules)))
    by_layer = choice.kept.mean(1)
    gone = [str(layer + 1) for layer in np.flatnonzero(by_layer == 0)]
    whole = [str(layer + 1) for layer in np.flatnonzero(by_layer == 1)]
    sentences = [
        f"{choice.size} keeps most of {by_kind[-1][1]} ({100 * by_kind[-1][0]:.0f}%) and least of {by_kind[0][1]}"
        f" ({100 * by_kind[0][0]:.0f}%)."
    ]
    if gone:
        sentences.append(f"It drops {_blocks(gone)} whole.")
    if whole:
        sentences.append(f"It keeps {_blocks(whole)} whole.")
    dropped = [
        f"{NAMES.get(module, module)} of {_blocks([str(layer + 1) for layer in layers])}"
        for module, column in zip(choice.modules, choice.kept.T)
        if len(layers := [la for la in np.flatnonzero(column == 0) if by_layer[la] > 0]) > 0
    ]
    if dropped:
        sentences.append("Where it keeps a block, it drops " + "; ".join(dropped) + ".")
    return " ".join(sentences)


def _blocks(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    return f"blocks {', '.join(numbers[:-1])} and {numbers[-1]}"


def read_history(path: PathLike) -> dict[int, dict[str, list[float]]]:
    """step -> size -> soft weights of all units; the last line of each step. Raises UserError when a line is damaged."""
    history = {}
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = json.loads(line)
            weights = {
                size: [np.nan if one is None else float(one) for one in of] for size, of in entry["weights"].items()
            }
            history[int(entry["step"])] = weights
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}:{number}: no line of a selection's history") from None
    return dict(sorted(history.items()))


def draw_history(history: Mapping[int, Mapping[str, Sequence[float]]], units: Sequence[Sequence[Key]]) -> Figure:
    """Mean soft weight of the units of each kind of module over the first stage, one panel per size."""
    sizes = list(next(iter(history.values())))
    modules = list(dict.fromkeys(keys[0].module for keys in units))
    figure = Figure(figsize=(1.0 + 3.4 * len(sizes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes):
        weights = np.array([entry[size] for entry in history.values()])  # (steps, units)
        for module, (colour, _, line) in zip(modules, cycle(STYLES)):
            of_module = [keys[0].module == module for keys in units]
            mean = weights[:, of_module].mean(1)
            panel.plot(list(history), mean, line, color=colour, label=NAMES.get(module, module))
        panel.set(title=size, xlabel="step", ylim=(0, 1))
    panels[0].set_ylabel("mean soft weight")
    panels[-1].legend(fontsize=8)
    return figure
