"""The arrows between the rooms, as docs/architecture.md says them."""

from __future__ import annotations

import importlib.util
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs/architecture/rooms.py")
assert spec is not None and spec.loader is not None
rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rooms)

EXCEPTIONS: set[tuple[str, str]] = set()  # (module, module); at most three
LARGEST_FOLDER = 20


def test_arrows_point_down_only() -> None:
    floor = {room: number for number, floor in enumerate(rooms.FLOORS) for room in floor}
    assert len(EXCEPTIONS) <= 3
    wrong = []
    for source, target, _ in rooms.imports():
        above, below = rooms.room_of(source), rooms.room_of(target)
        if target and above != below and floor[above] >= floor[below] and (source, target) not in EXCEPTIONS:
            wrong.append(f"{source} -> {target}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_over_others() -> None:
    """Imports inside functions count too; those of the package's own face, which its users call, do not."""
    graph: dict[str, set[str]] = {}
    for source, target, typing in rooms.imports():
        if not typing and source and target and not target.startswith(f"{source}."):
            graph.setdefault(source, set()).add(target)
    while True:  # what imports nothing of the rest, or is imported by none of it, is on no circle
        reached = {target for targets in graph.values() for target in targets}
        rest = {name: targets & graph.keys() for name, targets in graph.items() if name in reached}
        rest = {name: targets for name, targets in rest.items() if targets}
        if len(rest) == len(graph):
            break
        graph = rest
    assert not graph, "\n".join(f"{name} -> {sorted(graph[name])}" for name in sorted(graph))


def test_every_room_is_on_a_floor_and_has_its_words() -> None:
    named = [room for floor in rooms.FLOORS for room in floor]
    assert Counter(named) == Counter(dict.fromkeys(rooms.WORDS, 1))
    assert {rooms.room_of(module) for module in rooms.modules()} == set(named)


def test_the_picture_is_of_this_code() -> None:
    """After a change of the rooms: python docs/architecture/rooms.py."""
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw()


def test_no_folder_holds_more_than_twenty_files() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no checkout of git")
    folders = Counter(Path(line).parent.as_posix() for line in done.stdout.splitlines())
    crowded = {folder: count for folder, count in folders.items() if count > LARGEST_FOLDER}
    assert not crowded, crowded
