"""One thin command per task: parse, call, print.

Commands lie in folders by what they are for, but their names stay flat: ``python -m espnet_todm.bin.make_tokens`` is
data_stages/make_tokens.py.
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("data_stages", "lm_stages", "benchmarks", "reports")
__path__ += [str(Path(__path__[0]) / folder) for folder in FOLDERS]
