"""How much memory this process has taken, in MiB. Imports nothing, so that a look does not change what is seen."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1024.0 * 1024.0


def peak_memory() -> float:
    """The most that was resident at once since the process began, or since :func:`reset_peak`.

    On Linux this is VmHWM, which begins anew with every program. ``resource.getrusage``'s ru_maxrss, taken elsewhere, says
    there what the parent had taken when it started the process, if that was more.
    """
    return _status("VmHWM") or _maxrss()


def resident_memory() -> float:
    """What is resident now; where the system does not say, the peak."""
    return _status("VmRSS") or _maxrss()


def reset_peak() -> bool:
    """Begin a new peak at what is resident now, where Linux lets a process do so. Returns whether it did."""
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(field: str) -> float:
    """A size of /proc/self/status, 0.0 where there is none."""
    if not STATUS.is_file():
        return 0.0
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return float(value.split()[0]) * 1024.0 / MIB
    return 0.0


def _maxrss() -> float:
    import resource

    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
