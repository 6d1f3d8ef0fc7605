"""What is the state space encoder's own: its blocks, and components that are pairs of heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.mh_ssm import TodmMhSsmEncoder
from espnet_todm.errors import UserError
from tests.conftest import mh_ssm, speech


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
