"""The stateless predictor: what it depends on, and that ESPnet's beam search sees what training computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.errors import UserError

VOCABULARY = 7


def decoder(context_size: int, **options: Any) -> StatelessDecoder:
    torch.manual_seed(0)
    return StatelessDecoder(VOCABULARY, hidden_size=8, context_size=context_size, **options).eval()


def hypothesis_of(labels: list[int]) -> Any:
    return SimpleNamespace(yseq=[0, *labels], dec_state=None)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, VOCABULARY - 1), max_size=6))
def test_the_beam_search_gets_what_training_computes(context_size: int, labels: list[int]) -> None:
    module = decoder(context_size)
    with torch.no_grad():
        trained = module(torch.tensor([[0, *labels]]))
        cache: dict[Any, Any] = {}
        prefixes = [hypothesis_of(labels[:end]) for end in range(len(labels) + 1)]
        searched, _, last = module.batch_score(prefixes, module.init_state(len(prefixes)), cache, True)
        one, _, label = module.score(prefixes[-1], {})
    torch.testing.assert_close(searched, trained[0])
    torch.testing.assert_close(one, trained[0, -1])
    assert last is not None and last.flatten().tolist() == [0, *labels] and label.tolist() == [[0, *labels][-1]]
    assert len(cache) <= len(prefixes)


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_an_output_depends_on_the_last_labels_only(context_size: int) -> None:
    module = decoder(context_size)
    first, second = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[0, 6, 2, 3, 4, 5]])
    same = (module(first) == module(second)).all(-1).squeeze(0).tolist()
    assert same == [position < 1 or position >= 1 + context_size for position in range(6)]


def test_states_are_placeholders_that_the_beam_search_can_move_about() -> None:
    module = decoder(2)
    states = module.init_state(3)
    picked = [module.select_state(states, index) for index in (2, 0)]
    assert module.create_batch_states(states, picked)[0].shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("options", "words"), [({"context_size": 0}, "context_size: 0"), ({"dropout_embed": 1.0}, "dropout_embed: 1.0")]
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        StatelessDecoder(VOCABULARY, **options)
