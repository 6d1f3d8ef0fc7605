"""The mock device itself: what it refuses and what it counts."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.mock_device import DEVICE, MixedDevices, MockDevice, MockTensor, on_cpu

WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to the CPU": lambda x: x.to("cpu"),
    "nonzero": lambda x: (x > 0).nonzero(),
    "boolean index": lambda x: x[x > 0],
    "index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "upload": lambda x: torch.ones(2).to(x.device),
    "list": lambda x: torch.tensor([1.0], device=x.device),
}
COMPUTING: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x.sum(),
    "in place": lambda x: x.add_(1),
    "zeros": lambda x: torch.zeros(3, device=x.device),
    "gather": lambda x: x[torch.zeros(2, dtype=torch.int64, device=x.device)],
    "70 tensors": lambda x: torch._foreach_mul([x] * 70, 2.0),
}
LAUNCHES = {"gather": 2, "70 tensors": 2}


def on_device(of: Callable[[Tensor], object]) -> tuple[int, int]:
    """Launches and synchronisations."""
    with MockDevice() as device:
        x = torch.randn(3, 4).to(DEVICE)
        device.counts.clear()
        of(x)
    return device.counts.total


@pytest.mark.parametrize("name", WAITING)
def test_waiting_is_counted(name: str) -> None:
    assert on_device(WAITING[name])[1] == 1


@pytest.mark.parametrize("name", COMPUTING)
def test_launches_are_counted(name: str) -> None:
    assert on_device(COMPUTING[name]) == (LAUNCHES.get(name, 1), 0)


def test_views_and_metadata_are_free() -> None:
    assert on_device(lambda x: x.view(4, 3).transpose(0, 1)[1:].unsqueeze(0).detach().shape) == (0, 0)


def test_devices_do_not_mix() -> None:
    with pytest.raises(MixedDevices, match="add"):
        on_device(lambda x: x + torch.ones(4))
    assert on_device(lambda x: x + torch.ones(())) == (1, 0)  # a scalar on the CPU is a number
    with pytest.raises(MixedDevices, match=r"cat|stack"):
        on_device(lambda x: torch.stack([x.sum(), torch.ones(())]))


def test_a_module_moves_and_learns() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    layer(x).square().sum().backward()
    expected = layer.weight.grad
    layer.zero_grad()
    with MockDevice() as device:
        layer.to(DEVICE)
        output = layer(x.to(DEVICE))
        assert output.device == DEVICE and output.is_cuda and isinstance(output, MockTensor)
        output.square().sum().backward()
    assert torch.equal(on_cpu(layer.weight.grad), expected)
    assert all(place.startswith("elsewhere") for place in device.counts.launches)
