"""The invariants of supernet encoders, over random sets of components and every flavour of every encoder."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_todm.components import Key, Subnet
from espnet_todm.encoders.supernet import REFERENCE_SECONDS, SupernetEncoder
from espnet_todm.sizes import fit_budget, uniform
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.compat import autocasts_on_cpu
from tests.conftest import flop_counter, random_subnet, speech

few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 10**6)


@few
@given(seed=seeds, density=st.sampled_from([0.2, 0.5, 0.9]))
def test_slice_equals_extracted_model_in_value_and_gradient(
    flavour: SupernetEncoder, seed: int, density: float
) -> None:
    subnet = random_subnet(flavour, seed, density)
    small = flavour.extract(subnet)
    x, lengths = speech()
    sliced, extracted = flavour.blocks(flavour.subsample(x, lengths), subnet), small(x, lengths)[0]
    torch.testing.assert_close(sliced, extracted, atol=1e-6, rtol=1e-5)

    flavour.zero_grad()
    sliced.square().sum().backward()
    extracted.square().sum().backward()
    cut = _with_gradients_as_values(flavour).extracted_state(subnet)
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.grad, cut[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _with_gradients_as_values(encoder: SupernetEncoder) -> SupernetEncoder:
    """A copy whose parameters hold the gradients, so that the code that cuts parameters cuts gradients."""
    values = type(encoder)(encoder.input_size, **vars(encoder.options))
    for target, source in zip(values.parameters(), encoder.parameters()):
        target.data = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return values


@few
@given(seed=seeds)
def test_slice_equals_gates_of_zero_and_one_in_value_and_gradient(flavour: SupernetEncoder, seed: int) -> None:
    subnet = random_subnet(flavour, seed)
    gates = {
        (layer, name): torch.zeros(module.components)
        for layer, block in enumerate(flavour.encoders)
        for name, _, module in block.elastic_modules()
    }
    for key in subnet.components:
        gates[key.layer, key.module][key.index] = 1.0
    encoder, (x, lengths) = copy.deepcopy(flavour).double(), speech()
    outputs, gradients = [], []
    for choice in ({"gates": {place: values.double() for place, values in gates.items()}}, {"subnet": subnet}):
        encoder.zero_grad()
        outputs.append(encoder.blocks(encoder.subsample(x.double(), lengths), **choice))
        outputs[-1].square().sum().backward()
        gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in encoder.named_parameters()}
        )
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


@pytest.mark.skipif(not autocasts_on_cpu(torch.bfloat16), reason="this torch cannot autocast norms on a CPU")
@pytest.mark.parametrize("form", ["full", "slice", "gates"])
def test_bfloat16_autocast_is_near_float32(flavour: SupernetEncoder, form: str) -> None:
    choice: dict[str, Any] = {"subnet": random_subnet(flavour, 1)} if form == "slice" else {}
    if form == "gates":
        places = ((la, n, m) for la, block in enumerate(flavour.encoders) for n, _, m in block.elastic_modules())
        choice = {"gates": {(layer, name): torch.full((module.components,), 0.7) for layer, name, module in places}}
    outputs = []
    for enabled in (False, True):
        flavour.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(flavour.blocks(flavour.subsample(*speech()), **choice).float())
        outputs[-1].square().mean().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in flavour.parameters())
    exact, rounded = outputs
    assert float((exact - rounded).square().mean().detach()) < 0.01 * float(exact.square().mean().detach())


@few
@given(seed=seeds)
def test_table_counts_what_the_extracted_model_has(flavour: SupernetEncoder, seed: int) -> None:
    subnet = random_subnet(flavour, seed)
    small, cost = flavour.extract(subnet), flavour.component_table().cost(subnet)
    assert cost.params == sum(parameter.numel() for parameter in small.parameters())
    x, lengths = speech(1, int(REFERENCE_SECONDS * FRAMES_PER_SECOND))
    with flop_counter() as counter, torch.no_grad():
        small(x, lengths)
    assert cost.flops * REFERENCE_SECONDS == pytest.approx(counter.get_total_flops(), rel=1e-9)


@few
@given(seed=seeds, data=st.data())
def test_padding_changes_nothing(flavour: SupernetEncoder, seed: int, data: st.DataObject) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(20, 60), min_size=2, max_size=4)))
    x, _ = speech(len(lengths), int(lengths.max()), seed)
    subnet = random_subnet(flavour, seed)
    padded = flavour.subsample(x, lengths)
    outputs = flavour.blocks(padded, subnet)
    for row, length in enumerate(lengths):
        alone = flavour.subsample(x[row : row + 1, :length], length[None])
        valid = int(alone.lengths)
        assert padded.lengths[row] == valid == alone.hidden.size(1)
        torch.testing.assert_close(outputs[row, :valid], flavour.blocks(alone, subnet)[0], atol=1e-5, rtol=1e-5)


@few
@given(seed=seeds)
def test_reordered_components_compute_the_same(flavour: SupernetEncoder, seed: int) -> None:
    rng, x = random.Random(seed), speech()
    moved = copy.deepcopy(flavour)
    orders = {}
    for layer, block in enumerate(moved.encoders):
        for name, _, module in block.elastic_modules():
            orders[layer, name] = tuple(rng.sample(range(module.components), module.components))
    moved.reorder(orders, {})
    torch.testing.assert_close(moved(*x)[0], flavour(*x)[0], atol=1e-5, rtol=1e-5)
    subnet = random_subnet(flavour, seed)
    places = frozenset(Key(k.layer, k.module, orders[k.layer, k.module].index(k.index)) for k in subnet.components)
    sliced = moved.blocks(moved.subsample(*x), Subnet("moved", places))
    torch.testing.assert_close(sliced, flavour.blocks(flavour.subsample(*x), subnet), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["params", "flops"])
def test_smaller_budgets_lie_inside_larger_ones(flavour: SupernetEncoder, criterion: str) -> None:
    table = flavour.component_table()
    smallest = uniform("smallest", table, 0.005, [kind for kind in table.kinds if kind != "conv"])
    low, high = (table.amount(subnet, criterion) for subnet in (smallest, table.full()))
    budgets = [low + share * (high - low) for share in (0.3, 0.6, 0.9)]
    fitted = [fit_budget("fitted", table, criterion, budget) for budget in budgets]
    assert smallest.components <= fitted[0].components < fitted[1].components < fitted[2].components
    assert all(table.amount(subnet, criterion) <= budget for subnet, budget in zip(fitted, budgets))


def test_an_extracted_model_can_be_cut_again(flavour: SupernetEncoder) -> None:
    small = flavour.extract(random_subnet(flavour, 3, 0.8))
    again = small.extract(small.component_table().full())
    torch.testing.assert_close(again(*speech())[0], small(*speech())[0])
    smaller = random_subnet(small, 4, 0.5)
    torch.testing.assert_close(
        small.extract(smaller)(*speech())[0], small.blocks(small.subsample(*speech()), smaller), atol=1e-6, rtol=1e-5
    )


def test_an_extracted_model_has_the_types_of_its_supernet(flavour: SupernetEncoder) -> None:
    double = copy.deepcopy(flavour).double()
    subnet, (x, lengths) = random_subnet(flavour, 5), speech()
    small = double.extract(subnet)
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    sliced = double.blocks(double.subsample(x.double(), lengths), subnet)
    torch.testing.assert_close(small(x.double(), lengths)[0], sliced, atol=1e-12, rtol=1e-10)


def test_extraction_keeps_the_dropout_of_the_slice(flavour: SupernetEncoder) -> None:
    """So that fine-tuning goes on with what training did, and what is cut again does, too."""
    encoder = type(flavour)(flavour.input_size, **{**vars(flavour.options), "dropout_rate": 0.4})
    subnet = random_subnet(encoder, 6)
    small = encoder.extract(subnet)
    again = small.extract(small.component_table().full())
    kept = [(layer, modules) for layer, modules in sorted(subnet.layers.items())]
    for place, (layer, modules) in enumerate(kept):
        for name, _, module in encoder.encoders[layer].elastic_modules():
            if modules.get(name) and getattr(module, "adaptive_dropout", False):
                rate = module.dropout * len(modules[name]) / module.components
                assert getattr(small.encoders[place], name).dropout == pytest.approx(rate)
                assert getattr(again.encoders[place], name).dropout == pytest.approx(rate)


def test_an_empty_block_is_the_identity_and_vanishes(flavour: SupernetEncoder) -> None:
    only_first = Subnet("first", frozenset(k for k in flavour.component_table().by_key if k.layer == 0))
    assert len(flavour.extract(only_first).encoders) == 1


def test_every_parameter_of_the_full_set_is_trained(flavour: SupernetEncoder) -> None:
    """Softmax does not see a bias of the keys, which are alike for all of them."""
    flavour.zero_grad()
    flavour(*speech())[0].square().sum().backward()
    without = [name for name, p in flavour.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.endswith("linear_k.bias")] == []
    flavour.zero_grad()
