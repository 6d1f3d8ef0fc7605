"""What is the E-Branchformer's own: ESPnet's encoder when full, and what is left of the merge when a branch is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_todm.components import Subnet
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.e_branchformer import TodmEBranchformerEncoder
from espnet_todm.errors import UserError
from tests.conftest import E_BRANCHFORMERS, disturb, e_branchformer, speech

STOCK = [name for name, options in E_BRANCHFORMERS.items() if options.get("pos_enc_layer_type") != "none"]


def stock_of(ours: TodmEBranchformerEncoder, subnet: Subnet) -> EBranchformerEncoder:
    conf = ours.stock_conf(subnet)
    assert conf is not None
    return EBranchformerEncoder(input_size=20, **conf).eval()


@pytest.mark.parametrize("name", STOCK)
def test_full_set_is_espnets_own_encoder(name: str) -> None:
    ours = e_branchformer(**E_BRANCHFORMERS[name])
    full = ours.component_table().full()
    stock = stock_of(ours, full)
    stock.load_state_dict(ours.extracted_state(full))
    torch.testing.assert_close(ours(*speech())[0], stock(*speech())[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(ours(*speech())[1], stock(*speech())[1])
    assert stock.state_dict().keys() == ours.state_dict().keys()


def test_a_stock_checkpoint_becomes_a_supernet_by_init_param(tmp_path: Path) -> None:
    from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

    options = {"sizes": {"small": {"depth": 0.67, "ffn": 0.5, "cgmlp": 0.5}}}
    source = e_branchformer(**options)
    stock = stock_of(source, source.component_table().full())
    disturb(stock)
    torch.save({f"encoder.{name}": value for name, value in stock.state_dict().items()}, tmp_path / "stock.pth")
    holder = torch.nn.Module()
    holder.encoder = e_branchformer(**options)
    load_pretrained_model(f"{tmp_path / 'stock.pth'}:encoder:encoder", holder, ignore_init_mismatch=False)
    torch.testing.assert_close(holder.encoder(*speech())[0], stock(*speech())[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [{"depth": 0.67, "ffn": 0.5, "cgmlp": 0.25}, {"ffn": 0}])
def test_an_even_subnet_is_a_stock_encoder(size: dict[str, float]) -> None:
    ours = e_branchformer(sizes={"small": size})
    subnet = ours.find_subnet("small")
    stock = stock_of(ours, subnet)
    stock.load_state_dict(ours.extracted_state(subnet))
    sliced = ours.blocks(ours.subsample(*speech()), subnet)
    torch.testing.assert_close(sliced, stock(*speech())[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "size", [{"heads": 0.5}, {"ffn": [4, 4, 1]}, {"attn": 0}, {"cgmlp": 0}, {"feed_forward_macaron": 0}]
)
def test_any_other_subnet_has_no_stock_form(size: dict[str, Any]) -> None:
    ours = e_branchformer(sizes={"small": size})
    assert ours.stock_conf(ours.find_subnet("small")) is None


def test_a_branch_that_keeps_nothing_adds_nothing_to_the_merge() -> None:
    """By hand, with zeros in its place; nothing of its filters' bias remains, and merge_proj's goes with the cgMLP."""
    block = e_branchformer(num_blocks=1, pos_enc_layer_type="none", attention_layer_type="selfattn").encoders[0]
    x, mask = torch.randn(2, 9, 16), torch.ones(2, 1, 9, dtype=torch.bool)
    filters, project = block.depthwise_conv_fusion, block.merge_proj

    def merged(attention: torch.Tensor, mlp: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        both = torch.cat([attention, mlp], -1)
        convolved = torch.nn.functional.conv1d(both.transpose(1, 2), filters.weight, bias, padding=1, groups=32)
        return torch.nn.functional.linear(both + convolved.transpose(1, 2), project.weight)

    attention, mlp = block.attn(block.norm_mha(x), None, mask), block.cgmlp(block.norm_mlp(x), mask)
    nothing, (left, right) = torch.zeros_like(x), filters.bias.split(16)
    only = block(x, None, mask, LayerChoice(kept={"attn": (0, 1, 2, 3)}))
    expected = x + merged(attention, nothing, torch.cat([left, 0 * right]))
    torch.testing.assert_close(only, block.norm_final(expected))
    only = block(x, None, mask, LayerChoice(kept={"cgmlp": (0, 1, 2, 3)}))
    expected = x + merged(nothing, mlp, torch.cat([0 * left, right])) + project.bias
    torch.testing.assert_close(only, block.norm_final(expected))


def test_an_extracted_block_has_no_part_of_the_merge_that_it_does_not_use() -> None:
    ours = e_branchformer(sizes={"a": {"attn": [4, 0, 0], "cgmlp": [0, 4, 0]}})
    subnet = ours.find_subnet("a")
    first, second, third = ours.extract(subnet).encoders
    assert first.merge_proj.weight.shape == second.merge_proj.weight.shape == (16, 16)
    assert first.merge_proj.bias is None and second.merge_proj.bias is not None
    assert not hasattr(third, "merge_proj") and not hasattr(third, "depthwise_conv_fusion")


def test_espnets_start_of_the_gates_is_ours() -> None:
    encoder = e_branchformer()
    for module in encoder.modules():
        if hasattr(module, "espnet_initialization_fn"):
            module.espnet_initialization_fn()
    gate = encoder.encoders[0].cgmlp.csgu.conv
    assert gate.bias.eq(1).all() and 0 < gate.weight.abs().max() < 1e-4


def test_a_branch_is_dropped_with_its_part_of_the_merge() -> None:
    encoder = e_branchformer(num_blocks=1, sizes={"without": {"cgmlp": 0}}).train()
    subsampled = encoder.subsample(*speech(batch=200, frames=9))
    torch.manual_seed(0)
    some, every = (encoder.blocks(subsampled, drop=drop) for drop in ({(0, "cgmlp"): 0.5}, {}))
    without = encoder.blocks(subsampled, encoder.find_subnet("without"))
    lost = torch.isclose(some, without, atol=1e-6).all(2).all(1)
    assert 70 < lost.sum() < 130
    assert not torch.isclose(some, every, atol=1e-6).all(2).all(1).any()  # the others have twice of it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_linear_after_conv": True}, ["use_linear_after_conv", "True", "cgmlp_groups: 1"]),
        ({"cgmlp_groups": 5}, ["cgmlp_groups", "5", "24"]),
        ({"cgmlp_conv_kernel": 4}, ["cgmlp_conv_kernel", "4", "odd"]),
        ({"merge_conv_kernel": 2}, ["merge_conv_kernel", "2", "odd"]),
        ({"gate_activation": "mish"}, ["gate_activation", "mish", "identity"]),
        ({"ffn_activation_type": "mish"}, ["ffn_activation_type", "mish", "swish"]),
        ({"attention_heads": 0}, ["attention_heads", "0", "above 0"]),
        ({"attention_heads": 3}, ["attention_heads", "3", "16"]),
        ({"rel_pos_type": "newest"}, ["rel_pos_type", "newest", "latest", "legacy"]),
        ({"attention_layer_type": "fast_selfattn"}, ["attention_layer_type", "fast_selfattn", "rel_selfattn"]),
        ({"chunks": 3}, ["unknown option 'chunks'", "todm_e_branchformer"]),
        ({"blocks": [{"heads": 3}]}, ["blocks[0]", "cgmlp_groups"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        e_branchformer(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
