"""The import hook made permanent: one .pth file in an environment's site-packages, which every Python start there reads.

Kept apart from :mod:`espnet_todm.hook`, which each of those starts imports and which therefore imports next to nothing.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Optional

from espnet_todm.errors import UserError
from espnet_todm.util.files import write_text

FILE = "espnet_todm_hook.pth"
# One line, as site.py wants it. Should the package be gone one day, the line does nothing instead of failing every start.
LINE = (
    "import importlib.util as u; "
    "u.find_spec('espnet_todm') and __import__('espnet_todm.hook', fromlist=['install']).install()\n"
)


def startup_file(site: Optional[str] = None) -> Path:
    """The .pth file of an environment. ``site``: its site-packages folder, default the running Python's."""
    return Path(site or sysconfig.get_paths()["purelib"]) / FILE


def is_on(site: Optional[str] = None) -> bool:
    """Whether the environment registers by itself."""
    return startup_file(site).is_file()


def switch_on(site: Optional[str] = None) -> bool:
    """Write the file. Returns True. Raises UserError when site-packages is missing or cannot be written."""
    path = startup_file(site)
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; it must be the site-packages folder of an environment")
    try:
        write_text(path, LINE)
    except OSError as error:
        raise _not_writable(path, error) from None
    return True


def switch_off(site: Optional[str] = None) -> bool:
    """Remove the file if it is there. Returns False. Raises UserError when it cannot be removed."""
    path = startup_file(site)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    return False


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path.parent}: cannot be changed ({error.strerror}); use a virtual environment of your own, or run commands"
        " through python -m espnet_todm.run"
    )
