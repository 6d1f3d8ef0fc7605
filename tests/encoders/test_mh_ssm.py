"""What is the state space encoder's own: its blocks, components that are pairs of heads, and streaming."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.mh_ssm import TodmMhSsmEncoder
from espnet_todm.errors import UserError
from tests.conftest import mh_ssm, random_subnet, speech

few = settings(max_examples=10, deadline=None)


def stepped(encoder: TodmMhSsmEncoder, hidden: torch.Tensor, **choice: Any) -> torch.Tensor:
    """hidden (B, T, D) through the encoder frame by frame -> (B, T, D)."""
    states, outputs = encoder.initial_state(len(hidden), **choice), []
    for frame in hidden.unbind(1):
        output, states = encoder.step(frame, states, **choice)
        outputs.append(output)
    return torch.stack(outputs, 1)


@few
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.2, 0.5, 1.0]), frames=st.integers(7, 150))
def test_streaming_is_the_same_as_all_at_once(seed: int, density: float, frames: int) -> None:
    encoder = mh_ssm(bidirectional=False, ssm_stack=2)
    subnet, subsampled = random_subnet(encoder, seed, density), encoder.subsample(*speech(2, frames))
    expected = encoder.blocks(subsampled, subnet)
    torch.testing.assert_close(stepped(encoder, subsampled.hidden, subnet=subnet), expected, atol=1e-4, rtol=1e-4)
    small = encoder.extract(subnet)
    torch.testing.assert_close(stepped(small, subsampled.hidden), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_stream_says_so() -> None:
    for encoder, words in (
        (mh_ssm(), "bidirectional: True"),
        (mh_ssm(bidirectional=False, attention_heads=4), "self_attn: cannot"),
        (mh_ssm(bidirectional=False, use_cnn_module=True), "conv_module: cannot"),
    ):
        with pytest.raises(UserError, match=words):
            encoder.initial_state(1)
    encoder = mh_ssm(bidirectional=False, attention_heads=4, sizes={"plain": {"self_attn": 0}})
    subsampled, plain = encoder.subsample(*speech()), encoder.find_subnet("plain")
    torch.testing.assert_close(
        stepped(encoder, subsampled.hidden, subnet=plain), encoder.blocks(subsampled, plain), atol=1e-4, rtol=1e-4
    )


def test_a_block_is_its_modules_one_after_another() -> None:
    block = mh_ssm(attention_heads=4, use_cnn_module=True, num_blocks=1).encoders[0]
    x, mask = torch.randn(2, 9, 16), torch.ones(2, 1, 9, dtype=torch.bool)
    y = x + 0.5 * block.feed_forward_macaron(block.norm_ff_macaron(x))
    y = y + block.state_space(block.norm_ssm(y), mask)
    y = y + block.self_attn(block.norm_mha(y), None, mask)
    y = y + block.conv_module(block.norm_conv(y), mask)
    y = y + 0.5 * block.feed_forward(block.norm_ff(y))
    torch.testing.assert_close(block(x, None, mask, LayerChoice()), block.norm_final(y))
    assert not hasattr(mh_ssm().encoders[0], "norm_final")


def test_components_are_pairs_of_heads_or_heads() -> None:
    def heads(encoder: TodmMhSsmEncoder) -> int:
        return sum(c.kind == "heads" and c.key.layer == 0 for c in encoder.component_table().components)

    assert heads(mh_ssm()) == 4 and heads(mh_ssm(head_gating=False)) == 8
    supernet = mh_ssm(sizes={"small": {"heads": 0.5}})
    conf = supernet.extracted_conf(supernet.find_subnet("small"))
    assert [block["ssm_heads"] for block in conf["blocks"]] == [4, 4, 4] and conf["ssm_head_dim"] == 2
    assert supernet.stock_conf(supernet.component_table().full()) is None


def test_one_frame_is_enough() -> None:
    encoder = mh_ssm()
    output, lengths, _ = encoder(*speech(1, 7))
    assert output.shape == (1, 1, 16) and lengths.tolist() == [1] and bool(output.isfinite().all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssm_heads": 3, "ssm_head_dim": 4}, ["ssm_heads", "3", "even"]),
        ({"ssm_heads": 0}, ["ssm_heads", "0", "above 0"]),
        ({"ssm_heads": 6}, ["ssm_heads", "6", "16"]),
        ({"ssm_head_dim": 0}, ["ssm_head_dim", "0", "above 0"]),
        ({"ssm_state": 5}, ["ssm_state", "5", "even"]),
        ({"ssm_stack": 0}, ["ssm_stack", "0", "above 0"]),
        ({"ssm_init": "legs"}, ["ssm_init", "legs", "lin, inv"]),
        ({"attention_heads": -1}, ["attention_heads", "-1", "above 0"]),
        ({"attention_heads": 3}, ["attention_heads", "3", "16"]),
        (
            {"pos_enc_layer_type": "rel_pos", "selfattention_layer_type": "rel_selfattn"},
            ["pos_enc_layer_type", "rel_pos", "attention_heads"],
        ),
        ({"heads": 4}, ["unknown option 'heads'", "todm_mh_ssm"]),
        ({"blocks": [{"ffn": 3}]}, ["blocks[0]", "ssm_heads"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        mh_ssm(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
