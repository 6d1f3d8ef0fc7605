"""Greedy search on a whole batch finds the labels of ESPnet's search on each utterance alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Callable

import pytest
import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer
from espnet2.asr_transducer.joint_network import JointNetwork
from torch import Tensor

from espnet_todm.decode.text import TextJoint
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.models.greedy import greedy_search
from tests.mock_device import DEVICE, MockDevice

VOCABULARY, SIZE = 20, 8
PREDICTORS: dict[str, Callable[[], Any]] = {
    "lstm": lambda: TransducerDecoder(VOCABULARY, hidden_size=SIZE),
    "lstm, two layers": lambda: TransducerDecoder(VOCABULARY, num_layers=2, hidden_size=SIZE),
    "gru": lambda: TransducerDecoder(VOCABULARY, "gru", hidden_size=SIZE),
    "gru, another blank": lambda: TransducerDecoder(VOCABULARY, "gru", hidden_size=SIZE, embed_pad=3),
    "stateless": lambda: StatelessDecoder(VOCABULARY, hidden_size=SIZE),
    "stateless, three labels": lambda: StatelessDecoder(VOCABULARY, hidden_size=SIZE, context_size=3),
    "stateless, one label": lambda: StatelessDecoder(VOCABULARY, hidden_size=SIZE, context_size=1),
}


def modules(predictor: str, blanks: float = 4.0) -> tuple[Any, JointNetwork]:
    """Random ones with large weights, so that labels depend on frames and on labels before. ``blanks``: bias of blanks."""
    torch.manual_seed(0)
    decoder, joint = PREDICTORS[predictor]().eval(), JointNetwork(VOCABULARY, 6, SIZE, joint_space_size=12)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), *joint.parameters()):
            parameter.normal_(std=1.0)
        joint.lin_out.bias[decoder.blank_id] = blanks
    return decoder, joint


def one_by_one(decoder: Any, joint: Any, encoded: Tensor, lengths: Sequence[int]) -> list[list[int]]:
    search = BeamSearchTransducer(decoder, joint, beam_size=1, score_norm=False)
    return [search(row[:length])[0].yseq[1:] for row, length in zip(encoded, lengths)]


def speech(lengths: Sequence[int]) -> Tensor:
    """Random output of an encoder; something else behind the ends of utterances."""
    encoded = 3 * torch.randn(len(lengths), max(lengths), 6)
    for row, length in zip(encoded, lengths):
        row[length:] = 9.0
    return encoded


@pytest.mark.parametrize("predictor", PREDICTORS)
@torch.no_grad()
def test_labels_are_those_of_espnets_search(predictor: str) -> None:
    decoder, joint = modules(predictor)
    lengths = [30, 7, 0, 1, 18]
    encoded = speech(lengths)
    expected = one_by_one(decoder, joint, encoded, lengths)
    assert greedy_search(decoder, joint, encoded, torch.tensor(lengths)) == expected
    said = [len(labels) for labels in expected]
    assert said[2] == 0 < said[0] < 30 and len(set(expected[0])) > 3  # neither all blank nor all the same


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
@torch.no_grad()
def test_at_most_one_label_per_frame(predictor: str) -> None:
    decoder, joint = modules(predictor, blanks=-1e3)
    encoded, lengths = speech([9, 4]), torch.tensor([9, 4])
    found = greedy_search(decoder, joint, encoded, lengths)
    assert [len(labels) for labels in found] == [9, 4]
    assert found == one_by_one(decoder, joint, encoded, [9, 4])


@torch.no_grad()
def test_only_text_is_said_where_that_is_asked_for() -> None:
    decoder, joint = modules("stateless")
    only, encoded = TextJoint(joint, [1, VOCABULARY - 1]), speech([30, 12])
    found = greedy_search(decoder, only, encoded, torch.tensor([30, 12]))
    assert found == one_by_one(decoder, only, encoded, [30, 12])
    assert found != greedy_search(decoder, joint, encoded, torch.tensor([30, 12]))


@torch.no_grad()
def test_no_frames_give_no_labels() -> None:
    decoder, joint = modules("lstm")
    assert greedy_search(decoder, joint, torch.randn(2, 5, 6), torch.tensor([0, 0])) == [[], []]
    assert greedy_search(decoder, joint, torch.randn(0, 5, 6), torch.tensor([], dtype=torch.long)) == []


@pytest.mark.parametrize("predictor", PREDICTORS)
@torch.no_grad()
def test_the_host_waits_for_lengths_and_labels_only(predictor: str) -> None:
    decoder, joint = modules(predictor)
    launches = []
    for lengths in ([12, 5, 0], [12, 5, 0, 3, 9, 12]):
        encoded, ends = speech(lengths), torch.tensor(lengths)
        expected = greedy_search(decoder, TextJoint(joint, [1, 2]), encoded, ends)
        with MockDevice() as device:
            there = copy.deepcopy(decoder).to(DEVICE), TextJoint(copy.deepcopy(joint).to(DEVICE), [1, 2])
            inputs = encoded.to(DEVICE), ends.to(DEVICE)
            device.counts.clear()
            assert greedy_search(*there, *inputs) == expected
        assert device.counts.total[1] == 2, device.counts.syncs
        launches.append(device.counts.total[0])
    assert launches[0] == launches[1] < 40 * 12
