"""Shared builders: small encoders of every flavour, and random subnets of them."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any, Callable, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings

from espnet_todm.components import Subnet
from espnet_todm.encoders.branchformer import TodmBranchformerEncoder
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.encoders.e_branchformer import TodmEBranchformerEncoder
from espnet_todm.encoders.latency import LatencyTable, Line, fingerprint
from espnet_todm.encoders.mh_ssm import TodmMhSsmEncoder
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.encoders.transformer import TodmTransformerEncoder

torch.set_num_threads(1)
# How fast a machine is at the moment is nothing that a test may fail for.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Recipes first: with several processes, the long tests must not be the last ones."""
    items.sort(key=lambda item: "recipes" not in item.nodeid and item.get_closest_marker("recipe") is None)


E = TypeVar("E", bound=SupernetEncoder)

FLAVOURS: dict[str, dict[str, Any]] = {
    "relative": {},
    "layer norm, channel groups": {"conv_norm": "layer_norm", "conv_groups": 4},
    "batch norm, channel groups": {"conv_groups": 2},
    "absolute positions": {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
    "legacy relative": {"rel_pos_type": "legacy"},
    "legacy relative, short table": {"rel_pos_type": "legacy", "max_pos_emb_len": 300, "num_blocks": 2},
    "scaled absolute positions": {
        "pos_enc_layer_type": "scaled_abs_pos", "selfattention_layer_type": "selfattn", "num_blocks": 2,
    },
    "no positions": {"pos_enc_layer_type": "none", "selfattention_layer_type": "selfattn"},
    "no macaron": {"macaron_style": False},
    "convolution first": {"convolution_first": True},
    "no convolution": {"use_cnn_module": False},
    "stride 6, chunks apart": {"input_layer": "conv2d6", "ffn_chunks": 2, "macaron_ffn_chunks": 8},
    "slim input layer": {"input_channels": 6},
    "stride 8": {"input_layer": "conv2d8", "num_blocks": 2},
    "frames as they are": {"input_layer": "linear", "num_blocks": 2},
    "dropped layers": {"layer_drop_rate": 0.3, "stochastic_depth_rate": [0.0, 0.2, 0.5]},
    "VGG front end": {"input_layer": "vgg4", "num_blocks": 2},
    "depthwise front end": {"input_layer": "dw_conv2d", "num_blocks": 2},
    "wide heads": {"head_dim": 12, "activation_type": "gelu"},
}  # fmt: skip


E_BRANCHFORMERS: dict[str, dict[str, Any]] = {
    "E-Branchformer": {},
    "E-Branchformer, no feed-forward": {"use_ffn": False},
    "E-Branchformer, one feed-forward, gated by swish": {"macaron_ffn": False, "gate_activation": "swish"},
    "E-Branchformer, absolute positions, whole cgMLP": {
        "pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn", "cgmlp_groups": 1, "merge_conv_kernel": 5,
    },
    "E-Branchformer, legacy relative": {"rel_pos_type": "legacy", "num_blocks": 2},
    "E-Branchformer, stride 2, a linear layer after the filters": {
        "input_layer": "conv1d2", "use_linear_after_conv": True, "cgmlp_groups": 1, "num_blocks": 2,
    },
    "E-Branchformer, no positions": {
        "pos_enc_layer_type": "none", "attention_layer_type": "selfattn", "head_dim": 6, "input_layer": "dw_conv2d",
    },
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Transformer": {},
    "Transformer, stride 2, wide heads": {"input_layer": "conv1d2", "head_dim": 6, "num_blocks": 2},
}
BRANCHFORMERS: dict[str, dict[str, Any]] = {
    "Branchformer": {"stochastic_depth_rate": 0.1},
    "Branchformer, legacy relative, gated by swish": {
        "rel_pos_type": "legacy", "gate_activation": "swish", "num_blocks": 2, "input_layer": "conv2d2",
    },
}  # fmt: skip
MH_SSMS: dict[str, dict[str, Any]] = {
    "MH-SSM": {},
    "MH-SSM, causal, inverse start": {"bidirectional": False, "ssm_init": "inv", "macaron_style": False},
    "MH-SSM, no gating, two in series": {"head_gating": False, "ssm_stack": 2, "ssm_state": 8, "num_blocks": 2},
    "MH-SSM, Stateformer with convolution": {
        "attention_heads": 4, "use_cnn_module": True, "cnn_module_kernel": 5, "conv_groups": 2,
    },
    "MH-SSM, relative attention, odd widths": {
        "attention_heads": 2, "pos_enc_layer_type": "rel_pos", "selfattention_layer_type": "rel_selfattn",
        "ssm_heads": 6, "ssm_head_dim": 3, "input_layer": "dw_conv2d",
    },
}  # fmt: skip
SMALL: dict[str, Any] = {
    "input_size": 20,
    "output_size": 16,
    "linear_units": 32,
    "num_blocks": 3,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}


def build(encoder: type[E], **options: Any) -> E:
    """A small encoder in eval mode, its weights away from their starting points."""
    torch.manual_seed(0)
    built = encoder(**{**SMALL, **options})
    disturb(built)
    return built.eval()


def conformer(**options: Any) -> TodmConformerEncoder:
    """A 3-block Conformer of 16 channels on 20 features, without dropout."""
    base = {"attention_heads": 4, "macaron_style": True, "rel_pos_type": "latest", "cnn_module_kernel": 5}
    return build(TodmConformerEncoder, **{**base, **options})


def e_branchformer(**options: Any) -> TodmEBranchformerEncoder:
    """The same size of E-Branchformer."""
    base = {
        "attention_heads": 4,
        "use_ffn": True,
        "macaron_ffn": True,
        "cgmlp_linear_units": 24,
        "cgmlp_conv_kernel": 5,
    }
    return build(TodmEBranchformerEncoder, **{**base, **options})


def branchformer(**options: Any) -> TodmBranchformerEncoder:
    """The same size of Branchformer; it has no feed-forward modules."""
    torch.manual_seed(0)
    base = {name: value for name, value in SMALL.items() if name != "linear_units"}
    cgmlp = {"attention_heads": 4, "cgmlp_linear_units": 24, "cgmlp_conv_kernel": 5}
    built = TodmBranchformerEncoder(**{**base, **cgmlp, **options})
    disturb(built)
    return built.eval()


# The same sizes of Transformer, and of state space encoder in 8 heads of 2 channels.
transformer = partial(build, TodmTransformerEncoder, attention_heads=4)
mh_ssm = partial(build, TodmMhSsmEncoder, ssm_state=4, macaron_style=True)


def speech(batch: int = 2, frames: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, T, 20) and lengths (B,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 20, generator=generator), torch.full((batch,), frames)


def disturb(module: torch.nn.Module) -> None:
    """Move every parameter and statistic, so that a norm's weight of 1 or a bias of 0 cannot hide a mistake."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.add_(0.1 * torch.rand_like(tensor) if "running_var" in name else 0.1 * torch.randn_like(tensor))


def flop_counter() -> Any:
    """torch's counter, and 2.5 n log2(n) for each Fourier transform of n real numbers, which it does not know.

    Torch below 2.1 does not count, so there the calling test is skipped.
    """
    counter = pytest.importorskip("torch.utils.flop_counter")

    def transform(shape: Any) -> float:
        return 2.5 * math.prod(shape) * math.log2(shape[-1])

    def forward(shape: Any, *_: Any, **__: Any) -> float:
        return transform(shape)

    def back(shape: Any, *_: Any, out_shape: Any, **__: Any) -> float:
        return transform(out_shape)

    aten = torch.ops.aten
    return counter.FlopCounterMode(display=False, custom_mapping={aten._fft_r2c: forward, aten._fft_c2r: back})


def synthetic_latency(encoder: SupernetEncoder, norm: float = 2e-6) -> LatencyTable:
    """A measurement with made-up times, alike for modules of one name; no machine is slow or fast in it."""
    rng, table = random.Random(0), encoder.component_table()
    lines = {name: Line(rng.uniform(1e-5, 1e-4), rng.uniform(1e-5, 1e-4)) for _, name in table.module_costs}
    modules = {place: lines[place[1]] for place in table.module_costs}
    layers = dict.fromkeys(table.layer_costs, norm)
    return LatencyTable(fingerprint(encoder, table), modules, layers, 3e-4, {"cpu": "made up", "threads": 1}, {})


def random_subnet(encoder: SupernetEncoder, seed: int, density: float = 0.5) -> Subnet:
    """Any set of components, not only prefixes, with at least one."""
    rng = random.Random(seed)
    keys = sorted(encoder.component_table().by_key)
    kept = {key for key in keys if rng.random() < density} or {rng.choice(keys)}
    return Subnet(f"random{seed}", frozenset(kept))


ENCODERS: dict[str, tuple[Callable[..., SupernetEncoder], dict[str, Any]]] = {
    **{name: (conformer, options) for name, options in FLAVOURS.items()},
    **{name: (e_branchformer, options) for name, options in E_BRANCHFORMERS.items()},
    **{name: (transformer, options) for name, options in TRANSFORMERS.items()},
    **{name: (branchformer, options) for name, options in BRANCHFORMERS.items()},
    **{name: (mh_ssm, options) for name, options in MH_SSMS.items()},
}


@pytest.fixture(params=ENCODERS, scope="module")
def flavour(request: pytest.FixtureRequest) -> SupernetEncoder:
    make, options = ENCODERS[request.param]
    return make(**options)
