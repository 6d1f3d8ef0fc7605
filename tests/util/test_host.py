"""Copies on the host: read once, known without reading, forgotten with the tensor or with its values."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from espnet_todm.util import host
from tests.mock_device import DEVICE, MockDevice, on_cpu


@pytest.fixture
def device():  # type: ignore[no-untyped-def]
    with MockDevice() as device:
        yield device


def lengths(*numbers: int) -> Tensor:
    return torch.tensor(numbers).to(DEVICE)


def test_values_are_read_once_until_they_change(device: MockDevice) -> None:
    x = lengths(3, 1)
    device.counts.clear()
    assert host.values(x) == host.values(x) == [3, 1] and device.counts.total[1] == 1
    x.add_(1)
    assert host.values(x) == [4, 2] and device.counts.total[1] == 2


def test_several_tensors_are_read_at_once(device: MockDevice) -> None:
    x, y = lengths(3, 1), lengths(1, 2, 3, 4).view(2, 2)
    device.counts.clear()
    host.read(x, y)
    assert host.values(x) == [3, 1] and host.values(y) == [[1, 2], [3, 4]] and device.counts.total[1] == 1


def test_results_of_known_tensors_are_known(device: MockDevice) -> None:
    x, y = lengths(3, 1), lengths(0, 1)
    host.read(x, y)
    device.counts.clear()
    both = host.on_both(lambda a, b: a * b + 1, x, y)
    assert host.values(both) == [1, 2] and device.counts.total == (2, 0)
    assert host.values(host.on_both(lambda a, b: a + b, x, lengths(1, 1))) == [4, 2]  # one of them was not known
    assert device.counts.total[1] == 2  # the upload, and the reading


def test_a_fact_is_computed_once_while_the_values_stay() -> None:
    x, asked = torch.ones(2), []
    for _ in range(2):
        assert host.fact(x, "sum", lambda: asked.append(1) or float(x.sum())) == 2
    x.zero_()
    assert host.fact(x, "sum", lambda: asked.append(1) or float(x.sum())) == 0
    assert len(asked) == 2


def test_nothing_is_kept_longer_than_its_tensor() -> None:
    x = torch.ones(2)
    host.fact(x, "sum", lambda: 2)
    key = id(x)
    assert key in host._KNOWN
    del x
    gc.collect()
    assert key not in host._KNOWN


def test_tensors_of_inference_mode_have_no_memory() -> None:
    with torch.inference_mode():
        x = torch.tensor([1, 2])
        assert host.fact(x, "sum", lambda: 3) == 3 and host.values(x) == [1, 2]


@pytest.mark.parametrize("mask", [[True, False, True], [False, False], [True], []])
def test_places_are_those_of_nonzero(device: MockDevice, mask: list[bool]) -> None:
    x = torch.tensor(mask, dtype=torch.bool)
    there = x.to(DEVICE)
    device.counts.clear()
    for found in (host.places(x, sum(mask)), on_cpu(host.places(there, sum(mask)))):
        assert found.tolist() == x.nonzero().view(-1).tolist() and found.dtype == torch.int64
    assert device.counts.total[1] == 0
