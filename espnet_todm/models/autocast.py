"""Mixed precision on any device, including CPUs. ESPnet's own ``use_amp`` has no effect on CPUs."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch

from espnet_todm.util.compat import autocasts_on_cpu, runs_lstm_on_cpu
from espnet_todm.util.processor import cpu_has

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Autocast:
    """``with autocast(device)`` runs its body in a type of DTYPES, or in float32 if ``dtype`` is None.

    It also uses float32 on a CPU without instructions for the type (much slower there), or if torch lacks it on CPUs.
    lstm: whether the body runs an LSTM, which more CPUs lack.
    """

    def __init__(self, dtype: Optional[str], lstm: bool = False) -> None:
        self.dtype = DTYPES[dtype] if dtype is not None else None
        self.on_cpu = dtype is not None and cpu_has(dtype) and autocasts_on_cpu(DTYPES[dtype])
        if lstm and self.dtype is not None:
            self.on_cpu = self.on_cpu and runs_lstm_on_cpu(self.dtype)
        if dtype is not None and not self.on_cpu:
            logging.warning("autocast: %s is emulated on this CPU, or not in this torch: float32 there", dtype)

    def __call__(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.dtype is None or (device.type == "cpu" and not self.on_cpu):
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


FLOAT32 = Autocast(None)
