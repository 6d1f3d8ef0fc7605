"""Make ESPnet's stock commands know this package's names, for one Python environment.

    python -m espnet_todm.bin.hook on       # from now on: python -m espnet2.bin.asr_train --config our.yaml ...
    python -m espnet_todm.bin.hook status
    python -m espnet_todm.bin.hook off

``on`` writes one .pth file into site-packages of the environment that runs it; every Python of that environment then looks
out for the import of ESPnet's ASR task.

Example: python -m espnet_todm.bin.hook status
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run
from espnet_todm.util import startup


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("action", choices=("on", "off", "status"))
    parser.add_argument("--site", help="site-packages folder (default: that of the running Python)")
    options = parser.parse_args(arguments)
    actions = {"on": startup.switch_on, "off": startup.switch_off, "status": startup.is_on}
    result = actions[options.action](options.site)
    print(f"{'on' if result else 'off'}: {startup.startup_file(options.site)}")


if __name__ == "__main__":
    run(main)
