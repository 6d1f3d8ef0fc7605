"""The contract with ESPnet is what the code uses, and the installed ESPnet keeps it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import espnet_todm
from espnet_todm.espnet.contract import ATTRIBUTES, IMPORTS, MEMBERS, REGISTRATION

NAMES = {
    *REGISTRATION,
    *((module, name) for module, names in IMPORTS.items() for name in names.split()),
    *((module, f"{cls}.{name}") for (module, cls), names in MEMBERS.items() for name in names.split()),
}


@cache
def trees() -> list[ast.AST]:
    folder = Path(espnet_todm.__file__).parent
    return [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py") if path.name != "contract.py"]


def test_the_table_of_imports_is_that_of_the_code() -> None:
    found = defaultdict(set)
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("espnet", "espnet2"):
                found[node.module].update(alias.name for alias in node.names)
            if isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.split(".")[0] in ("espnet", "espnet2")]
    assert dict(found) == {module: set(names.split()) for module, names in IMPORTS.items()}


@pytest.mark.parametrize(("module", "name"), sorted(NAMES))
def test_espnet_has(module: str, name: str) -> None:
    owner = importlib.import_module(module)
    if hasattr(owner, name) or "." in name:
        attrgetter(name)(owner)
    else:
        importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize(("module", "cls"), sorted(MEMBERS))
def test_members_that_the_code_uses_are_in_the_table(module: str, cls: str) -> None:
    """Names of ours that an ESPnet class has as well: they override it, or reach into it."""
    theirs = getattr(importlib.import_module(module), cls)
    own = set(dir(theirs)) - set(dir(torch.nn.Module)) - set(dir(object))
    used = {node.attr for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    missing = (own & used) - set(MEMBERS[module, cls].split())
    assert not missing, f"{cls}: add to MEMBERS: {sorted(missing)}"


@pytest.mark.parametrize(("module", "cls"), sorted(ATTRIBUTES))
def test_objects_of_espnet_have_their_attributes(module: str, cls: str) -> None:
    source = inspect.getsource(getattr(importlib.import_module(module), cls))
    given = set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? =", source))
    assert not set(ATTRIBUTES[module, cls].split()) - given
