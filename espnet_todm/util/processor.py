"""What the processor at hand is and can do, as Linux gives it."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions that compute in a type at full speed: of x86 and of ARM.
_FLAGS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


def cpu_model() -> str:
    """Name of the processor, else what Python knows."""
    return _field("model name") or platform.processor() or platform.machine()


def cpu_has(dtype: str) -> bool:
    """Whether this CPU computes in ``bfloat16`` or ``float16`` without emulating it. Where nothing is said: no."""
    return not _FLAGS[dtype].isdisjoint((_field("flags") or _field("Features")).split())


def _field(name: str) -> str:
    """The first value of this name in /proc/cpuinfo, "" when there is none."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name and value.strip():
                return value.strip()
    return ""
