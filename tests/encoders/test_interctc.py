"""Intermediate CTC in encoders: a subnet's places, and that slice, gates, small model and ESPnet's own encoder agree."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from espnet2.asr.ctc import CTC
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.components import Key
from espnet_todm.deploy.onnx.graph import exportable
from espnet_todm.encoders.interctc import Between, kept_places, renumbered
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError
from tests.conftest import conformer, disturb, e_branchformer, random_subnet, speech, transformer

Make = Callable[..., StackedEncoder]
MAKERS = [conformer, e_branchformer, transformer]
VOCABULARY, PLACES = 7, [1, 2, 4]
few = settings(max_examples=8, deadline=None)


def ctc() -> CTC:
    torch.manual_seed(1)
    module = CTC(VOCABULARY, 16, dropout_rate=0.0)
    disturb(module)
    return module.eval()


def conditioned(make: Make, **options: Any) -> StackedEncoder:
    """As ESPnet's model leaves it: with the layer that feeds posteriors back."""
    encoder = make(num_blocks=5, **{"interctc_layer_idx": PLACES, "interctc_use_conditioning": True, **options})
    encoder.conditioning_layer = torch.nn.Linear(VOCABULARY, 16)
    return encoder.eval()


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        (range(5), [1, 2, 4]),
        ([0, 4], [1]),  # nothing new at 2 and 4
        ([2, 4], [4]),  # nothing before 1 and 2
        ([0, 1, 2], [1, 2]),  # 4 would be the end
        ([1], []),
        ([3, 4], [4]),
        ([4], []),
    ],
)
def test_places_of_a_subnet(layers: list[int], places: list[int]) -> None:
    assert kept_places(PLACES, layers) == places


@given(st.sets(st.integers(0, 11), min_size=1), st.sets(st.integers(1, 11)))
def test_places_of_a_small_model_are_between_its_blocks_and_apart(layers: set[int], places: set[int]) -> None:
    new = [renumbered(place, layers) for place in kept_places(sorted(places), layers)]
    assert new == sorted(set(new)) and all(0 < place < len(layers) for place in new)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("conditioning", [True, False])
def test_full_set_is_espnets_own_encoder(make: Make, conditioning: bool) -> None:
    ours = conditioned(make, interctc_use_conditioning=conditioning)
    if not conditioning:
        ours.conditioning_layer = None
    full, output = ours.component_table().full(), ctc()
    conf = ours.stock_conf(full)
    assert conf is not None and conf["interctc_layer_idx"] == PLACES
    stock = ours.stock_class(input_size=20, **conf)  # type: ignore[call-arg, misc]
    if conditioning:
        stock.conditioning_layer = torch.nn.Linear(VOCABULARY, 16)
    stock.eval().load_state_dict(ours.extracted_state(full))
    (mine, inside), (theirs, inside_theirs) = (encoder(*speech(), ctc=output)[0] for encoder in (ours, stock))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    assert [place for place, _ in inside] == [place for place, _ in inside_theirs] == PLACES
    for (_, a), (_, b) in zip(inside, inside_theirs):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@few
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.1, 0.3, 0.8]), make=st.sampled_from(MAKERS))
def test_slice_equals_small_model_and_gates_of_zero_and_one(seed: int, density: float, make: Make) -> None:
    encoder, output = conditioned(make), ctc()
    subnet = random_subnet(encoder, seed, density)
    subsampled, between = encoder.subsample(*speech()), Between(output.softmax)
    sliced = encoder.blocks(subsampled, subnet, between=between)
    small = encoder.extract(subnet)
    made = small(*speech(), ctc=output)[0]
    made, inside = made if isinstance(made, tuple) else (made, [])
    torch.testing.assert_close(sliced, made, atol=1e-6, rtol=1e-5)
    layers = sorted(subnet.layers)
    assert [place for place, _ in inside] == [renumbered(taken.place, layers) for taken in between.taken]
    for (_, ours), taken in zip(inside, between.taken):
        torch.testing.assert_close(ours, taken.output, atol=1e-6, rtol=1e-5)
    kept = subnet.components
    gates = {
        (layer, name): torch.tensor([float(Key(layer, name, i) in kept) for i in range(module.components)])
        for layer, block in enumerate(encoder.encoders)
        for name, _, module in block.elastic_modules()  # type: ignore[operator]
    }
    softly = Between(output.softmax)
    torch.testing.assert_close(encoder.blocks(subsampled, gates=gates, between=softly), sliced, atol=1e-5, rtol=1e-5)
    assert [float(taken.weight) for taken in softly.taken] == [float(p in kept_places(PLACES, layers)) for p in PLACES]


@few
@given(seed=st.integers(0, 10**6))
def test_padding_changes_nothing(seed: int) -> None:
    encoder, output = conditioned(conformer), ctc()
    x, lengths = speech(2, 60, seed)[0], torch.tensor([60, 37])
    alone, _ = encoder(x[1:, :37], lengths[1:], ctc=output)[0]
    torch.testing.assert_close(
        encoder(x, lengths, ctc=output)[0][0][1, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-5
    )


def test_an_exit_is_the_small_model_that_ends_there() -> None:
    sizes = {"first": {"depth": 0.4, "drop": "last"}}
    encoder, output = conditioned(conformer, sizes=sizes, conv_norm="layer_norm"), ctc()
    subnet = encoder.find_subnet("first")
    subsampled = encoder.subsample(*speech())
    both = encoder.blocks(subsampled, exits=[2, 5], between=Between(output.softmax))
    small, _ = encoder.extract(subnet)(*speech(), ctc=output)[0]
    torch.testing.assert_close(both[0], small, atol=1e-6, rtol=1e-5)


def test_feeding_back_without_posteriors_is_refused() -> None:
    encoder = conditioned(conformer)
    with pytest.raises(UserError, match="interctc_use_conditioning: true needs the model's CTC output"):
        encoder(*speech())


def test_a_stock_encoder_that_feeds_back_is_exported_as_ours() -> None:
    ours, output = conditioned(conformer), ctc()
    full = ours.component_table().full()
    conf = ours.stock_conf(full)
    stock = ours.stock_class(input_size=20, **conf)  # type: ignore[call-arg, misc]
    stock.conditioning_layer = torch.nn.Linear(VOCABULARY, 16)
    stock.load_state_dict(ours.extracted_state(full))
    form = exportable(stock.eval(), "conformer", {"input_size": 20, **conf})  # type: ignore[dict-item]
    encoded = form.blocks(form.subsample(*speech()), between=Between(output.softmax))
    torch.testing.assert_close(encoded, ours(*speech(), ctc=output)[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (conformer, {"interctc_layer_idx": [3]}, ["interctc_layer_idx", "[3]", "1 to 2"]),
        (conformer, {"interctc_layer_idx": [0, 1]}, ["interctc_layer_idx", "[0, 1]"]),
        (e_branchformer, {"interctc_layer_idx": "1"}, ["interctc_layer_idx", "'1'"]),
        (transformer, {"interctc_layer_idx": [True]}, ["interctc_layer_idx"]),
        (conformer, {"ctc_trim": True}, ["ctc_trim: True"]),
        (
            conformer,
            {"interctc_layer_idx": [1], "interctc_use_conditioning": True, "causal": True, "decode_chunk": [8, 16]},
            ["decode_chunk", "interctc_use_conditioning"],
        ),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(make: Make, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
