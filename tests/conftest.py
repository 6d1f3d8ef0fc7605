"""Shared builders: small encoders of every flavour, and random subnets of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from espnet_todm.components import Subnet
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.latency import LatencyTable, Line, fingerprint

torch.set_num_threads(1)
# How fast a machine is at the moment is nothing that a test may fail for.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

FLAVOURS: dict[str, dict[str, Any]] = {
    "relative": {},
    "layer norm, channel groups": {"conv_norm": "layer_norm", "conv_groups": 4},
    "batch norm, channel groups": {"conv_groups": 2},
    "absolute positions": {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
    "no positions": {"pos_enc_layer_type": "none", "selfattention_layer_type": "selfattn"},
    "no macaron": {"macaron_style": False},
    "convolution first": {"convolution_first": True},
    "no convolution": {"use_cnn_module": False},
    "stride 6, chunks apart": {"input_layer": "conv2d6", "ffn_chunks": 2, "macaron_ffn_chunks": 8},
    "slim input layer": {"input_channels": 6},
    "VGG front end": {"input_layer": "vgg4", "num_blocks": 2},
    "depthwise front end": {"input_layer": "dw_conv2d", "num_blocks": 2},
    "wide heads": {"head_dim": 12, "activation_type": "gelu"},
}


def conformer(**options: Any) -> TodmConformerEncoder:
    """A 3-block Conformer of 16 channels on 20 features, without dropout, its weights away from their starting points."""
    base: dict[str, Any] = {
        "input_size": 20,
        "output_size": 16,
        "attention_heads": 4,
        "linear_units": 32,
        "num_blocks": 3,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "macaron_style": True,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 5,
    }
    torch.manual_seed(0)
    encoder = TodmConformerEncoder(**{**base, **options})
    disturb(encoder)
    return encoder.eval()


def disturb(module: torch.nn.Module) -> None:
    """Move every parameter and statistic, so that a norm's weight of 1 or a bias of 0 cannot hide a mistake."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.add_(0.1 * torch.rand_like(tensor) if "running_var" in name else 0.1 * torch.randn_like(tensor))


def flops_of(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """What torch counts in a forward pass. Torch below 2.1 does not count, so there the calling test is skipped."""
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops())


def synthetic_latency(encoder: TodmConformerEncoder, norm: float = 2e-6) -> LatencyTable:
    """A measurement with made-up times, alike for modules of one name; no machine is slow or fast in it."""
    rng, table = random.Random(0), encoder.component_table()
    lines = {name: Line(rng.uniform(1e-5, 1e-4), rng.uniform(1e-5, 1e-4)) for _, name in table.module_costs}
    modules = {place: lines[place[1]] for place in table.module_costs}
    layers = dict.fromkeys(table.layer_costs, norm)
    return LatencyTable(fingerprint(encoder, table), modules, layers, 3e-4, {"cpu": "made up", "threads": 1}, {})


def random_subnet(encoder: TodmConformerEncoder, seed: int, density: float = 0.5) -> Subnet:
    """Any set of components, not only prefixes, with at least one."""
    rng = random.Random(seed)
    keys = sorted(encoder.component_table().by_key)
    kept = {key for key in keys if rng.random() < density} or {rng.choice(keys)}
    return Subnet(f"random{seed}", frozenset(kept))


@pytest.fixture(params=FLAVOURS, scope="module")
def flavour(request: pytest.FixtureRequest) -> TodmConformerEncoder:
    return conformer(**FLAVOURS[request.param])
