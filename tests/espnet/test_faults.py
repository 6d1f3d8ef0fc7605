"""Processes of a training that die: one line. The exceptions are torch's own, of processes that were really killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.espnet.faults import faults_told, told_by_rank


class _Speech(torch.utils.data.Dataset[int]):
    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        self.fault()
        return index


def _killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _left(*_: Any) -> None:
    os._exit(3)


def _mistaken() -> None:
    raise UserError("feats.scp: utt1 is a shell command")


def _gone() -> None:
    raise FileNotFoundError(2, "No such file or directory", "feats.ark")


def _defect() -> None:
    raise ValueError("a defect")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (_killed, r"^a data loader's worker was ended, perhaps because memory was short; try a smaller num_workers$"),
        (_left, r"^a data loader's worker was ended, "),
        (_mistaken, r"^feats\.scp: utt1 is a shell command$"),
        (_gone, r"^reading data: FileNotFoundError: .*feats\.ark'$"),
    ],
)
def test_a_data_loaders_worker(fault: Any, line: str) -> None:
    with pytest.raises(UserError, match=line), faults_told():
        list(torch.utils.data.DataLoader(_Speech(fault), num_workers=1))


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(ValueError, match="Original Traceback"), faults_told():
        list(torch.utils.data.DataLoader(_Speech(_defect), num_workers=1))
    with pytest.raises(RuntimeError, match=r"^a defect$"), faults_told():
        raise RuntimeError("a defect")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (_killed, r"^process 0 of the training was ended by SIGKILL \(out of memory\?\)$"),
        (_left, r"^process 0 of the training ended with exit status 3; see above$"),
    ],
)
def test_a_rank_of_several_gpus(fault: Any, line: str) -> None:
    with pytest.raises(UserError, match=line), faults_told():
        torch.multiprocessing.start_processes(fault, nprocs=1, start_method="fork")


def _rank(_: int) -> None:
    with told_by_rank():
        raise UserError("exp: another process is writing it")


def test_a_rank_says_its_line_and_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="ended with exit status 1"), faults_told():
        torch.multiprocessing.start_processes(_rank, nprocs=1, start_method="fork")
    assert capfd.readouterr().err == "error: exp: another process is writing it\n"


def _average(rank: int, port: int) -> None:
    """Rank 1 dies before the second exchange of gradients; what rank 0 then meets is printed as commands do."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    try:
        with faults_told():
            torch.distributed.all_reduce(torch.ones(1))
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.all_reduce(torch.ones(1))
    except UserError as error:
        print(error, flush=True)
        os._exit(0)


def test_the_others_of_a_killed_rank(capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=_average, args=(rank, port)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, -signal.SIGKILL]
    assert capfd.readouterr().out.startswith("another process of this training ended or cannot be reached; ")
