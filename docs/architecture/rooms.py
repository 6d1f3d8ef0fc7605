"""The rooms of the package and their imports: read from the code, drawn for docs/architecture.md, checked by a test.

Draw anew with: python docs/architecture/rooms.py
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "espnet_todm"
PICTURE = Path(__file__).with_name("rooms.svg")

# From top to bottom. A module imports from its own room and from rooms below, never from one above or beside.
FLOORS = (
    ("front door", "bin"),
    ("report",),
    ("search",),
    ("bench",),
    ("deploy",),
    ("decode", "espnet3"),
    ("espnet",),
    ("scoring", "lm", "trainers", "iterators"),
    ("data", "models"),
    ("selection", "losses", "decoders", "optim"),
    ("encoders",),
    ("elastic",),
    ("vocabulary",),
    ("util",),
    ("errors",),
)
# Loose modules at the top of the package -> their room.
TOP = {
    **dict.fromkeys(("recognizer", "run"), "front door"),
    **dict.fromkeys(("components", "sizes", "card"), "vocabulary"),
    **dict.fromkeys(("hook", "precision"), "util"),
    "errors": "errors",
}
WORDS = {
    "front door": "what users import: load_supernet, load_model, Speech2Text, run",
    "bin": "one thin command per task",
    "report": "tables, plots, the page, model cards",
    "search": "subnets that nobody named",
    "bench": "what things cost on a machine",
    "deploy": "extract, fine-tune, pack, export formats, runtimes, parity gate",
    "decode": "searches, shallow fusion, whole sets",
    "espnet": "registries, options, configurations, trainer, model building",
    "espnet3": "task and callback for ESPnet 3",
    "scoring": "error rates and how far to trust them",
    "trainers": "one training step with the picked subnets",
    "lm": "n-grams, lexicons, spelling",
    "iterators": "batches of lhotse's cuts",
    "data": "corpora, features, tokens",
    "models": "what configurations name as model",
    "selection": "who picks the subnets",
    "losses": "distillation, transducers",
    "decoders": "stateless predictor",
    "optim": "ScaledAdam, Eden",
    "encoders": "supernet encoders and their options",
    "elastic": "layers that run full, sliced or gated",
    "vocabulary": "components, sizes, card",
    "util": "files, processes, units, checks, the import hook",
    "errors": "UserError",
}


class Import(NamedTuple):
    """Module -> module, and whether it is for type checkers alone."""

    source: str
    target: str
    typing: bool


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; packages by their own name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> list[Import]:
    """All imports of the package's modules among themselves, at the top of a module or inside functions."""
    known = modules()
    return [one for name, path in known.items() for one in _imports(name, ast.parse(path.read_text("utf-8")), known)]


def _imports(source: str, tree: ast.AST, known: dict[str, Path], typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            module = str(node.module).partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield Import(source, inner if inner in known else module, typing)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == PACKAGE:
                    yield Import(source, alias.name.partition(".")[2], typing)
        inside = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _imports(source, node, known, typing or inside)


def room_of(module: str) -> str:
    """The room of a module; the package itself is the front door. Raises KeyError for a loose module without one."""
    first, _, inner = module.partition(".")
    if not first:
        return "front door"
    return first if inner or (first in WORDS and first not in TOP) else TOP[first]


def arrows() -> Counter[tuple[str, str]]:
    """(room, room) -> how many imports go from one to the other."""
    pairs = ((room_of(one.source), room_of(one.target)) for one in imports() if one.target)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def draw() -> str:
    """The rooms floor by floor, as SVG; each says which rooms it imports from."""
    width, height, gap = 960, 58, 14
    below: dict[str, list[str]] = {}
    for (source, target), _ in arrows().most_common():
        below.setdefault(source, []).append(target)
    parts = []
    for floor, rooms in enumerate(FLOORS):
        each = (width - gap * (len(rooms) - 1)) / len(rooms)
        for place, room in enumerate(rooms):
            x, y = place * (each + gap), floor * (height + gap)
            told = " ".join(name for name in _in_order(below.get(room, [])) if name not in ("errors", "util"))
            lines = [(20, "bold", room), (37, "normal", WORDS[room]), (52, "normal", f"→ {told}" if told else "")]
            parts.append(f'<rect x="{x:g}" y="{y}" width="{each:g}" height="{height}" rx="6"/>')
            for shift, weight, text in lines:
                size = 14 if weight == "bold" else 11 if len(rooms) < 3 else 10
                parts.append(
                    f'<text x="{x + 10:g}" y="{y + shift}" font-weight="{weight}" font-size="{size}">{text}</text>'
                )
    total = len(FLOORS) * (height + gap) - gap
    style = "rect{fill:#f4f1ea;stroke:#6b6459}text{font-family:sans-serif;fill:#22201c}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width + 4} {total + 4}" width="{width}">'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _in_order(rooms: list[str]) -> list[str]:
    order = [room for floor in FLOORS for room in floor]
    return sorted(rooms, key=order.index)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
