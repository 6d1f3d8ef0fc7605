"""The search space: genes and subnets, and how subnets come within budgets."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import ComponentTable
from espnet_todm.errors import UserError
from espnet_todm.search.space import GRANULARITIES, SearchSpace, check_budgets, make_space
from espnet_todm.sizes import resolve_size
from espnet_todm.util.units import format_amount
from tests.conftest import conformer, mh_ssm, synthetic_latency


@cache
def table(encoder: str = "conformer") -> ComponentTable:
    built = {"conformer": conformer, "mh_ssm": mh_ssm}[encoder]()
    return synthetic_latency(built).apply(built.component_table())


@cache
def space(granularity: str, encoder: str = "conformer") -> SearchSpace:
    return make_space(table(encoder), granularity)


spaces = st.builds(space, st.sampled_from(GRANULARITIES), st.sampled_from(["conformer", "mh_ssm"]))
seeds = st.integers(0, 10**6)


@given(spaces, seeds)
def test_genes_and_subnets_turn_into_each_other(of: SearchSpace, seed: int) -> None:
    genes = of.draw(random.Random(seed))
    assert all(low <= genes[name] <= high for name, (low, high) in of.bounds.items())
    subnet = of.subnet(genes, "some")
    back = of.genes(subnet)
    assert back is not None and of.subnet(back) == of.subnet(genes) and subnet.name == "some"
    if of.granularity != "uniform":  # there a kind that is in no kept layer has no say
        assert back == genes


@settings(max_examples=60)
@given(spaces, seeds, st.sampled_from(["params", "flops", "latency"]), st.floats(0, 1))
def test_what_is_repaired_meets_its_budget_and_only_loses_components(
    of: SearchSpace, seed: int, criterion: str, share: float
) -> None:
    lowest = min(of.costs(genes)[criterion] for genes in of.least())
    budget = lowest + share * (of.table.amount(of.table.full(), criterion) - lowest)
    rng = random.Random(seed)
    genes = of.draw(rng)
    repaired = of.repair(genes, {criterion: budget}, rng)
    subnet = of.subnet(repaired)
    assert subnet.components and of.table.amount(subnet, criterion) <= budget * (1 + 1e-9)
    assert subnet.components <= of.subnet(genes).components or repaired in of.least()
    if of.fits(genes, {criterion: budget}):
        assert repaired == genes


@given(spaces, seeds)
def test_nothing_is_cheaper_than_the_least(of: SearchSpace, seed: int) -> None:
    genes = of.draw(random.Random(seed))
    if of.subnet(genes).components:
        costs, least = of.costs(genes), [of.costs(one) for one in of.least()]
        assert all(amount >= min(one[name] for one in least) * (1 - 1e-9) for name, amount in costs.items())


def test_the_full_set_and_sizes_of_prefixes_are_in_the_space() -> None:
    size = resolve_size("small", {"depth": 0.67, "ffn": 0.5, "heads": 0.5}, table())
    for granularity in GRANULARITIES:
        assert space(granularity).genes(table().full()) is not None
        found = space(granularity).genes(size)
        assert found is not None and space(granularity).subnet(found).components == size.components
    uneven = resolve_size("uneven", {"ffn": [1, 2, 4]}, table())
    assert space("uniform").genes(uneven) is None and space("layer").genes(uneven) is not None


def test_an_infeasible_budget_is_explained() -> None:
    of = space("layer")
    lowest = min(of.costs(genes)["params"] for genes in of.least())
    check_budgets(of, {"params": lowest})
    with pytest.raises(
        UserError, match=rf"budget: params=10 is infeasible.* cost {re.escape(format_amount(lowest))} to "
    ):
        check_budgets(of, {"params": 10})
    with pytest.raises(UserError, match="'speed' is unknown"):
        check_budgets(of, {"speed": 10})
    cheap = {name: min(of.costs(genes)[name] for genes in of.least()) for name in ("params", "flops", "latency")}
    together = [of.costs(genes) for genes in of.least()]
    assert not any(all(costs[name] <= cheap[name] for name in cheap) for costs in together)  # else this tests nothing
    with pytest.raises(UserError, match=r"no subnet has params=.* and flops=.* and latency=.* at once"):
        check_budgets(of, cheap)


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(UserError, match="granularity: 'block' is unknown; allowed: uniform, layer, component"):
        make_space(table(), "block")
