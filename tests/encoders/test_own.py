"""Parameters that each size owns (``own_affine``, ``own_branch_scale``): running, extraction, costs, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet2.torch_utils.initialize import initialize

from espnet_todm.components import FULL, Key, Subnet
from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.encoders.known import encoders
from espnet_todm.encoders.latency import fingerprint
from espnet_todm.encoders.streaming import StreamingEncoder
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.sizes import module_sizes
from tests.conftest import ENCODERS, SMALL, conformer, disturb, mh_ssm, random_subnet, speech

KNOWN: dict[str, Any] = encoders()
OWN: dict[str, Any] = {"own_affine": True, "own_branch_scale": 1.0, "sizes": {"small": {"depth": 0.5}}}


def own_encoder(name: str, seed: int = 0, **options: Any) -> SupernetEncoder:
    """An encoder whose size "small" is a random set of components, with all parameters away from their first values."""
    make, flavour = ENCODERS[name]
    encoder = make(**{**flavour, **OWN, **options})
    encoder.choose({"small": Subnet("small", random_subnet(encoder, seed).components)})
    return encoder


def run(encoder: SupernetEncoder, subnet: Subnet, **more: Any) -> torch.Tensor:
    x, lengths = speech()
    return encoder.blocks(encoder.subsample(x, lengths), subnet, **more)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_slice_equals_extracted_model_of_the_same_form(name: str) -> None:
    for seed in range(2):
        encoder = own_encoder(name, seed)
        small = encoder.extract(encoder.sizes["small"])
        x, lengths = speech()
        torch.testing.assert_close(small(x, lengths)[0], run(encoder, encoder.sizes["small"]), atol=1e-5, rtol=1e-5)
        shared = encoder.extract(Subnet("another", encoder.sizes["small"].components))
        assert not small.own and small.state_dict().keys() == shared.state_dict().keys()
        cost = encoder.component_table().cost(encoder.sizes["small"])
        assert cost.params == sum(parameter.numel() for parameter in small.parameters())
        assert not torch.equal(run(encoder, encoder.sizes["small"]), shared(x, lengths)[0])


def test_without_the_options_nothing_changes() -> None:
    plain, own = conformer(sizes=OWN["sizes"]), conformer(**OWN)
    assert not any("own" in name for name in plain.state_dict())
    assert [name for name in own.state_dict() if not name.startswith("own.")] == list(plain.state_dict())
    assert plain.component_table() == own.component_table()
    assert fingerprint(plain, plain.component_table()) == fingerprint(own, own.component_table())


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_sizes_start_as_the_shared_parameters(name: str) -> None:
    torch.manual_seed(0)
    base = {**SMALL, "conv_norm": "layer_norm"}  # batch norms have statistics per size
    options = {key: value for key, value in base.items() if key in vars(KNOWN[name].options_type())}
    encoder = KNOWN[name](**{**options, **OWN, "input_size": 20}).eval()
    size = encoder.sizes["small"]
    assert torch.equal(run(encoder, size), run(encoder, Subnet("another", size.components)))
    disturb(encoder)
    encoder.reset_own("small")
    assert torch.equal(run(encoder, size), run(encoder, Subnet("another", size.components)))


def test_only_the_size_uses_what_it_owns() -> None:
    encoder = conformer(**OWN, conv_norm="layer_norm")
    size = encoder.sizes["small"]
    others = [encoder.sizes[FULL], Subnet("another", size.components)]
    before = [run(encoder, subnet) for subnet in (*others, size)]
    disturb(encoder.own)
    after = [run(encoder, subnet) for subnet in (*others, size)]
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, True, False]
    after[-1].square().sum().backward()
    shared = [norm for norm, _ in encoder.own_pairs("small")]
    assert (
        len(shared) == 1 + 3 * 6
    )  # the output norm; in each block those before four modules, in the convolution, at the end
    assert all(parameter.grad is None for norm in shared for parameter in norm.parameters())
    for layer, own in enumerate(encoder.own["small"].blocks):
        used = [parameter.grad is not None for parameter in own.parameters()]
        assert all(used) if layer in size.layers else not any(used)


@pytest.mark.parametrize("options", [{"own_affine": True}, {"own_branch_scale": 0.5}], ids=["affine", "scale"])
@torch.no_grad()
def test_each_option_alone(options: dict[str, Any]) -> None:
    encoder = conformer(**options, sizes=OWN["sizes"])
    size = encoder.sizes["small"]
    x, lengths = speech()
    torch.testing.assert_close(encoder.extract(size)(x, lengths)[0], run(encoder, size), atol=1e-5, rtol=1e-5)
    owned = {name.rpartition(".")[2] for name, _ in encoder.own.named_parameters()}
    assert owned == ({"scales"} if "own_branch_scale" in options else {"weight", "bias"})
    if "own_branch_scale" in options:
        encoder.reset_own("small")
        assert all((block.scales == 0.5).all() for block in encoder.own["small"].blocks)


@pytest.mark.parametrize(
    "name", ["layer norm, channel groups", "E-Branchformer", "MH-SSM, Stateformer with convolution"]
)
@torch.no_grad()
def test_slice_equals_gates_of_zero_and_one(name: str) -> None:
    encoder = own_encoder(name)
    size = encoder.sizes["small"]
    gates = {
        (layer, module): torch.tensor([float(Key(layer, module, index) in size.components) for index in range(count)])
        for (layer, module), count in module_sizes(encoder.component_table()).items()
    }
    gated = run(encoder, Subnet("small", encoder.sizes[FULL].components), gates=gates)
    torch.testing.assert_close(gated, run(encoder, size), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["layer norm, channel groups", "batch norm, channel groups", "E-Branchformer"])
@torch.no_grad()
def test_reordered_components_take_what_the_size_owns_along(name: str) -> None:
    encoder = own_encoder(name)
    size, totals = encoder.sizes["small"], module_sizes(encoder.component_table())
    expected = run(encoder, size)
    norms = [parameter for parameter in encoder.own.parameters() if parameter.dim() == 1]
    states = {parameter: {"exp_avg": parameter.clone(), "step": torch.tensor(1.0)} for parameter in norms}
    orders = {place: tuple(reversed(range(count))) for place, count in totals.items()}
    encoder.reorder(orders, states)
    moved = {Key(k.layer, k.module, totals[k.layer, k.module] - 1 - k.index) for k in size.components}
    torch.testing.assert_close(run(encoder, Subnet("small", frozenset(moved))), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(parameter, states[parameter]["exp_avg"]) for parameter in norms)


@torch.no_grad()
def test_streaming_equals_that_of_the_extracted_model() -> None:
    encoder = conformer(**OWN, causal=True, chunk={"frames": 3, "left": 6})
    size, (x, _) = encoder.sizes["small"], speech()
    small = StreamingEncoder(encoder.extract(size), Chunk(3, 6))
    pairs = zip(StreamingEncoder(encoder, Chunk(3, 6), size).utterance(x), small.utterance(x))
    for ours, extracted in pairs:
        torch.testing.assert_close(ours, extracted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frame_by_frame_equals_the_whole_utterance() -> None:
    encoder = mh_ssm(**OWN, bidirectional=False)
    size, (x, lengths) = encoder.sizes["small"], speech()
    frames = torch.cat(list(StreamingEncoder(encoder, Chunk(1, 1), size).utterance(x)), dim=1)
    torch.testing.assert_close(frames, encoder.blocks(encoder.subsample(x, lengths), size), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_intermediate_outputs_pass_through_the_own_norm() -> None:
    encoder = conformer(**{**OWN, "sizes": {"small": {"ffn": 0.5}}}, interctc_layer_idx=[1])
    x, lengths = speech()
    encoder.select("small")
    (_, ((_, ours),)), *_ = encoder(x, lengths)
    (_, ((_, small),)), *_ = encoder.extract(encoder.sizes["small"])(x, lengths)
    torch.testing.assert_close(ours, small, atol=1e-5, rtol=1e-5)


def test_a_scale_needs_a_linear_layer_to_be_folded_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ElasticAttention, "last", "")
    with pytest.raises(UserError, match="own_branch_scale: ElasticAttention does not name its last linear layer"):
        conformer(**OWN)


@pytest.mark.parametrize("init", ["chainer", "xavier_uniform"])
@torch.no_grad()
def test_espnets_initialisation_keeps_sizes_as_the_shared_parameters(init: str) -> None:
    encoder = conformer(**OWN, conv_norm="layer_norm")
    initialize(encoder, init)
    size = encoder.sizes["small"]
    assert torch.equal(run(encoder, size), run(encoder, Subnet("another", size.components)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"own_affine": "yes"}, "encoder_conf.own_affine: 'yes' must be true or false"),
        ({"own_branch_scale": True}, "encoder_conf.own_branch_scale: True must be a number"),
        ({"own_branch_scale": 0}, "own_branch_scale: 0 is not allowed, it must be a finite number > 0"),
        ({"own_affine": True, "sizes": None}, "own_affine: True is for named sizes, but encoder_conf has none"),
        ({"own_branch_scale": 2.0, "sizes": {}}, "own_branch_scale: 2.0 is for named sizes, but encoder_conf has none"),
    ],
)
def test_a_wrong_value_ends_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        conformer(**{"sizes": OWN["sizes"], **options})
    assert line in str(error.value) and "\n" not in str(error.value)
