"""Running statistics of batch norm in training: whose they are, and that nothing which is no number gets into them. Filters
of a few channels in every precision."""

from __future__ import annotations

import subprocess
import sys
from typing import Optional

import pytest
import torch

from espnet_todm.components import FULL
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.util.compat import computes_in_bfloat16_on_cpu

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


@pytest.mark.parametrize("size", [FULL, "small", "unnamed"])
@pytest.mark.parametrize("kept", KEPT)
def test_a_single_frame_is_normalised_by_what_is_known_and_changes_nothing(
    kept: Optional[tuple[int, ...]], size: str
) -> None:
    module, one = convolution(), torch.randn(1, 1, SIZE)
    for name in (FULL, "small"):
        step(module, torch.randn(2, 9, SIZE), None, name)
    before = moments(module)
    step(module, one, kept, size)
    assert all(torch.equal(now, before[name]) for name, now in moments(module).items())
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(module(one, mask, kept, size=size), module.eval()(one, mask, kept, size=size))


# A hang in a library's thread cannot be interrupted, so a process of its own is tried, and ended if need be.
NARROW_CUTS = """
import sys
import torch
from espnet_todm.elastic.convolution import depthwise

torch.set_num_threads(1)
cast, dtype = sys.argv[1] == "autocast", getattr(torch, sys.argv[2])
for channels in range(1, 25):
    for kernel, frames in ((3, 30), (15, 57), (31, 40)):
        torch.manual_seed(channels)
        x, weight, bias = torch.randn(3, frames, channels), torch.randn(channels, 1, kernel), torch.randn(channels)
        mask = torch.arange(frames) < torch.tensor([frames, 9, 20]).view(3, 1, 1)
        results = []
        for wanted in (torch.float32, dtype):
            parts = [part.clone().to(torch.float32 if cast else wanted).requires_grad_() for part in (x, weight, bias)]
            with torch.autocast("cpu", torch.bfloat16, enabled=cast and wanted != torch.float32):
                filtered = depthwise(parts[0], mask, parts[1], parts[2]).float()
            filtered.square().sum().backward()
            results.append([filtered.detach(), *(part.grad.float() for part in parts)])
        for exact, rounded in zip(*results):
            assert (exact - rounded).norm() <= 0.03 * exact.norm(), (channels, kernel)
"""


@pytest.mark.parametrize("way", ["autocast bfloat16", "itself bfloat16", "itself float32", "itself float64"])
def test_filters_of_any_few_channels_return_in_every_precision(way: str) -> None:
    command = [sys.executable, "-c", NARROW_CUTS, *way.split()]
    ended = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_bfloat16_on_a_cpu_is() -> None:
    x = torch.randn(2)
    assert not computes_in_bfloat16_on_cpu(x) and computes_in_bfloat16_on_cpu(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert computes_in_bfloat16_on_cpu(x)
    assert not computes_in_bfloat16_on_cpu(torch.empty(2, device="meta").bfloat16())
