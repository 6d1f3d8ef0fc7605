"""DistributedDataParallel training on the CPU of one machine: several ESPnet processes of one thread each.

The operations of a small model are too short for several threads. Processes that share a batch use the cores better.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Optional

from espnet_todm.errors import UserError
from espnet_todm.util.child import child_environment, python_module
from espnet_todm.util.lifetime import as_parent

SECONDS_BETWEEN_LOOKS = 0.2


def train(arguments: Sequence[str], processes: int) -> None:
    """Run ``espnet_todm.bin.asr_train`` as ``processes`` ranks. The ranks inherit the output of this process.

    Raises UserError when a rank fails, after terminating the other ranks.
    """
    if processes < 1:
        raise UserError(f"processes: {processes}, but at least 1 is needed")
    command = python_module("espnet_todm.bin.asr_train", *arguments)
    environment = child_environment(OMP_NUM_THREADS="1", **as_parent())
    distributed = [] if processes == 1 else _distributed(processes)
    ranks = [
        subprocess.Popen(
            [*command, *distributed, *(["--dist_rank", str(rank)] if distributed else [])], env=environment
        )
        for rank in range(processes)
    ]
    failed: Optional[str] = None
    try:
        while failed is None and any(rank.poll() is None for rank in ranks):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            failed = _failure(ranks)
    finally:
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            rank.wait()
    if failed is not None or (failed := _failure(ranks)) is not None:
        raise UserError(failed)


def _failure(ranks: Sequence[subprocess.Popen[bytes]]) -> Optional[str]:
    """Why the training ended, or None. A killed rank makes the other ranks fail, so the message names the killed one."""
    statuses = {number: rank.poll() for number, rank in enumerate(ranks)}
    for number, status in statuses.items():
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            return f"training ended: its process {number} was ended by {name}" + (
                " (out of memory?)" if name == "SIGKILL" else ""
            )
    bad = next(filter(None, statuses.values()), None)
    return None if bad is None else f"training ended with exit status {bad}; see what it printed above"


def _distributed(processes: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "dist_backend": "gloo",
        "dist_world_size": processes,
        "dist_master_addr": "127.0.0.1",
        "dist_master_port": port,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
