"""Run a stock ESPnet command with this package registered: ``python -m espnet_todm.run -m espnet2.bin.asr_train ...``.

In an ESPnet checkout: ``./asr.sh --python "python3 -m espnet_todm.run"``. The hook sits at the top level of this module so
that children which multiprocessing spawns, and which import the main module anew, are registered too.
"""

from __future__ import annotations

import runpy
import sys

from espnet_todm import hook

hook.install()

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit("usage: python -m espnet_todm.run -m MODULE [ARGUMENT ...]")
    del sys.argv[:2]
    # Not alter_sys: spawned children import what sys.modules calls __main__, and that must go on being this module.
    runpy.run_module(sys.argv[0], run_name="__main__")
