"""Running statistics of batch norm in training: whose they are, and that nothing which is no number gets into them."""

from __future__ import annotations

from typing import Optional

import pytest
import torch

from espnet_todm.components import FULL
from espnet_todm.elastic.convolution import ElasticConvolution

SIZE, CHANNELS, GROUPS = 8, 12, 4
KEPT = [None, (0, 1), (1, 3)]  # all, a view, a copy


def convolution() -> ElasticConvolution:
    torch.manual_seed(0)
    return ElasticConvolution(SIZE, CHANNELS, GROUPS, 3, "batch_norm", torch.nn.SiLU(), ("small",)).train()


def step(module: ElasticConvolution, x: torch.Tensor, kept: Optional[tuple[int, ...]], size: str) -> None:
    module(x, torch.ones(len(x), 1, x.size(1), dtype=torch.bool), kept, size=size).square().sum().backward()


def moments(module: ElasticConvolution) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if "running" in name}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(("kept", "size"), [*((kept, "small") for kept in KEPT), (None, FULL), ((0, 2), "unnamed")])
def test_what_is_not_finite_does_not_get_into_the_running_statistics(
    value: float, kept: Optional[tuple[int, ...]], size: str
) -> None:
    module, x = convolution(), torch.randn(2, 9, SIZE)
    step(module, x, kept, size)
    before = moments(module)
    broken = x.clone()
    broken[1, 4] = value
    step(module, broken, kept, size)
    after = moments(module)
    assert all(bool(now.isfinite().all()) for now in after.values())
    if value != 1e30:  # which some channels' gates take to zero
        assert all(torch.equal(now, before[name]) for name, now in after.items())


@pytest.mark.parametrize("kept", KEPT)
def test_kept_channels_have_torchs_running_statistics_and_the_others_their_own(
    kept: Optional[tuple[int, ...]],
) -> None:
    module, x = convolution(), torch.randn(2, 9, SIZE)
    seen = []
    module.activation.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    own = torch.nn.BatchNorm1d(CHANNELS if kept is None else len(kept) * CHANNELS // GROUPS)
    mask = torch.ones(2, 1, 9, dtype=torch.bool)
    weight, bias = module.take("depthwise_conv.weight", kept), module.take("depthwise_conv.bias", kept)
    filtered = torch.nn.functional.conv1d(
        module._before(x, kept).transpose(1, 2), weight, bias, padding=1, groups=len(weight)
    )
    for _ in range(2):
        module(x, mask, kept, size="small")
        own(filtered)
    statistics = module.size_norms["small"]
    for name, expected, untouched in (("running_mean", own.running_mean, 0.0), ("running_var", own.running_var, 1.0)):
        parts = getattr(statistics, name).unflatten(0, (GROUPS, -1))
        index = list(range(GROUPS) if kept is None else kept)
        torch.testing.assert_close(parts[index].flatten(), expected)
        others = [group for group in range(GROUPS) if group not in index]
        assert torch.all(parts[others] == untouched)


@pytest.mark.parametrize("size", ["small", "unnamed"])
@pytest.mark.parametrize("kept", KEPT)
def test_a_training_step_on_some_groups_has_a_backward(kept: Optional[tuple[int, ...]], size: str) -> None:
    module = convolution()
    step(module, torch.randn(2, 9, SIZE), kept, size)
    assert module.norm.weight.grad is not None and bool(module.norm.weight.grad.isfinite().all())
