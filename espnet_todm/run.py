"""Run Python with this package registered: ``python -m espnet_todm.run -m espnet2.bin.asr_train ...``.

In an ESPnet checkout: ``./asr.sh --python "python3 -m espnet_todm.run"``. The arguments are those of ``python``:
``-m MODULE``, the path of a script, ``-c CODE``, or ``-`` for code on standard input, and their arguments.

The hook is at the top level of this module. Child processes spawned by multiprocessing import the main module
again, so they are registered too. Children of a script import the script, as they do without this module.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from espnet_todm import hook

hook.install()

USAGE = "usage: python -m espnet_todm.run (-m MODULE | SCRIPT | -c CODE | -) [ARGUMENT ...]"


def run(words: Sequence[str]) -> None:
    """Run the same code as ``python`` with these arguments. Exits with one line for arguments that are not supported."""
    kind, *rest = words or [""]
    if kind in ("-m", "-c") and rest:
        sys.argv[:] = rest if kind == "-m" else [kind, *rest[1:]]
        # Not alter_sys: spawned children import the __main__ of sys.modules, which must remain this module.
        return _run_code(rest[0], "<string>") if kind == "-c" else _run_module(rest[0])
    if kind == "-" or (kind and not kind.startswith("-")):
        sys.argv[:] = words
        return _run_code(sys.stdin.read(), "<stdin>") if kind == "-" else _run_script(kind)
    sys.exit(USAGE)


def _run_module(name: str) -> None:
    runpy.run_module(name, run_name="__main__")


def _run_script(path: str) -> None:
    if not os.path.exists(path):
        sys.exit(f"error: {path}: no such script; {USAGE}")
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    runpy.run_path(path, run_name="__main__")


def _run_code(code: str, name: str) -> None:
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    run(sys.argv[1:])
