"""The recursion as one kernel: Triton's interpreter runs it on the CPU and must give what torch's operations give."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch

from espnet_todm.losses import transducer_kernel
from espnet_todm.losses.transducer_kernel import _compiles, has_kernel
from tests.recipes.conftest import ROOT

# Triton decides while it is imported whether it interprets.
SCRIPT = """
import json, sys, torch
from espnet_todm.losses import transducer_lattice as lattice

torch.manual_seed(1)
differences = []
for count, frames, labels in json.loads(sys.argv[1]):
    blank, label = torch.randn(count, frames, labels + 1).double(), torch.randn(count, frames + 1, labels).double()
    for moves in (blank, label):
        moves[torch.rand(moves.shape) < 0.2] = float("-inf")
    expected = lattice._from_the_start(blank, label)
    lattice.has_kernel = lambda device: True
    computed = lattice._from_the_start(blank, label)
    lattice.has_kernel = lambda device: False
    same = torch.isinf(expected) == torch.isinf(computed)
    finite = torch.isfinite(expected)
    differences.append((bool(same.all()), float((expected - computed)[finite].abs().max())))
print(json.dumps(differences))
"""

COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from espnet_todm.losses.transducer_triton import diagonals_of_one_lattice as kernel

signature = {"alpha": "*fp64", "moves": "*fp64", "diagonals": "i32", "lattices": "i32", "rows": "i32", "BLOCK": "constexpr"}
source = ASTSource(kernel, signature=signature, constexprs={"BLOCK": 128})
compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 2})
print(len(compiled.asm["cubin"]))
"""
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def python(script: str, argument: str, **more: str) -> str:
    """Run a script in a process of its own; the last line of its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", script, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@needs_triton
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernel_compiles_for_gpus(capability: str, tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler, which needs no GPU."""
    assert int(python(COMPILE, capability, TRITON_CACHE_DIR=str(tmp_path))) > 1000


@needs_triton
def test_the_kernel_gives_what_torch_gives() -> None:
    shapes = [(3, 7, 5), (1, 1, 0), (2, 4, 0), (2, 1, 6), (2, 20, 16)]
    differences = json.loads(python(SCRIPT, json.dumps(shapes), TRITON_INTERPRET="1"))
    assert len(differences) == len(shapes)
    assert all(same and difference < 1e-12 for same, difference in differences), differences


def test_a_cpu_has_no_kernel() -> None:
    assert not has_kernel(torch.device("cpu"))


def test_a_gpu_for_which_triton_cannot_compile_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _compiles.cache_clear()
    failing = mock.Mock(side_effect=RuntimeError("no C compiler\nmore"))
    with mock.patch.object(transducer_kernel, "sweep", failing), caplog.at_level(logging.WARNING):
        assert not _compiles(torch.device("cpu")) and not _compiles(torch.device("cpu"))
    _compiles.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "transducer: Triton does not run here (no C compiler more), so the recursion takes more launches"
    ]
