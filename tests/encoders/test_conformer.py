"""What is the Conformer's own: ESPnet's encoder when full, its order of modules, batch norm, cards and wrong options."""

from __future__ import annotations

import pytest
import torch
from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_todm.components import Key, Subnet
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.errors import UserError
from espnet_todm.util.files import write_json
from tests.conftest import FLAVOURS, conformer, disturb, random_subnet, speech

STOCK = {
    name: options
    for name, options in FLAVOURS.items()
    if not {"conv_norm", "head_dim", "input_channels", "convolution_first"} & options.keys()
    and options.get("pos_enc_layer_type") != "none"
    and options.get("input_layer", "conv2d") in TodmConformerEncoder.stock_inputs
}


@pytest.mark.parametrize("name", STOCK)
def test_full_set_is_espnets_own_encoder(name: str) -> None:
    ours = conformer(**STOCK[name])
    conf = ours.stock_conf(ours.component_table().full())
    if "apart" in name:
        assert conf is not None  # chunk counts do not matter to the function
    stock = ConformerEncoder(input_size=20, **conf).eval()
    stock.load_state_dict(ours.extracted_state(ours.component_table().full()))
    x, lengths = speech()
    torch.testing.assert_close(ours(x, lengths)[0], stock(x, lengths)[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(ours(x, lengths)[1], stock(x, lengths)[1])
    assert set(stock.state_dict()) <= set(ours.state_dict())  # a stock checkpoint loads by name


def test_the_class_accepts_its_own_defaults_which_are_espnets() -> None:
    ours, stock = TodmConformerEncoder(80), ConformerEncoder(80)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert {name: p.shape for name, p in ours.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}


def test_legacy_positions_are_espnets_of_each_utterance_alone() -> None:
    """In a padded batch ESPnet's own encoder gives an utterance another result; ours does not."""
    ours = conformer(rel_pos_type="legacy")
    full = ours.component_table().full()
    stock = ConformerEncoder(input_size=20, **ours.stock_conf(full)).eval()
    stock.load_state_dict(ours.extracted_state(full))
    x, lengths = speech(2, 90)[0], torch.tensor([90, 47])
    padded, alone = ours(x, lengths)[0], stock(x[1:, :47], lengths[1:])[0][0]
    torch.testing.assert_close(padded[1, : len(alone)], alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(stock(x, lengths)[0][1, : len(alone)], alone, atol=1e-3)


def test_a_long_utterance_leaves_legacy_positions_as_they_were() -> None:
    ours = conformer(rel_pos_type="legacy", max_pos_emb_len=12)
    before = ours(*speech())[0]
    stock = ConformerEncoder(input_size=20, **ours.stock_conf(ours.component_table().full())).eval()
    stock.load_state_dict(ours.extracted_state(ours.component_table().full()))
    longer = speech(1, 200)
    torch.testing.assert_close(ours(*longer)[0], stock(*longer)[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(ours(*speech())[0], before)


@pytest.mark.parametrize("form", ["", "legacy"])
def test_uniform_subnet_is_a_stock_encoder(form: str) -> None:
    ours = conformer(num_blocks=4, sizes={"small": {"depth": 0.5, "ffn": 0.5}}, rel_pos_type=form or "latest")
    subnet = ours.find_subnet("small")
    conf = ours.stock_conf(subnet)
    assert conf is not None and (conf["num_blocks"], conf["linear_units"]) == (2, 16)
    stock = ConformerEncoder(input_size=20, **conf).eval()
    stock.load_state_dict(ours.extracted_state(subnet))
    subsampled = ours.subsample(*speech())
    torch.testing.assert_close(ours.blocks(subsampled, subnet), stock(*speech())[0], atol=1e-6, rtol=1e-5)


def test_uneven_subnet_has_no_stock_form() -> None:
    ours = conformer(sizes={"fewer_heads": {"heads": 0.5}, "uneven": {"ffn": [4, 4, 1]}})
    assert ours.stock_conf(ours.find_subnet("fewer_heads")) is None
    assert ours.stock_conf(ours.find_subnet("uneven")) is None


def test_convolution_first_is_the_order_of_the_paper() -> None:
    encoder = conformer(convolution_first=True, num_blocks=1)
    block, mask = encoder.encoders[0], torch.ones(1, 1, 9, dtype=torch.bool)
    assert [name for name, _, _ in block.elastic_modules()] == [
        "feed_forward_macaron", "conv_module", "self_attn", "feed_forward",
    ]  # fmt: skip
    x, positions = torch.randn(1, 9, 16), torch.randn(1, 17, 16)
    y = x + 0.5 * block.feed_forward_macaron(block.norm_ff_macaron(x))
    y = y + block.conv_module(block.norm_conv(y), mask)
    y = y + block.self_attn(block.norm_mha(y), positions, mask)
    y = y + 0.5 * block.feed_forward(block.norm_ff(y))
    torch.testing.assert_close(block(x, positions, mask, LayerChoice()), block.norm_final(y))
    assert encoder.stock_conf(encoder.component_table().full()) is None
    assert encoder.extracted_conf(encoder.component_table().full())["convolution_first"] is True


def test_batch_norm_statistics_of_sizes_do_not_mix() -> None:
    encoder = conformer(sizes={"small": {"depth": 0.67, "conv": [1, 0, 1]}}, conv_groups=2).train()
    small = encoder.find_subnet("small")
    before = {k: v.clone() for k, v in encoder.named_buffers() if "running" in k}
    encoder.blocks(encoder.subsample(*speech()), small)
    changed = {k for k, v in encoder.named_buffers() if k in before and not torch.equal(v, before[k])}
    assert changed and all("size_norms.small" in name for name in changed)
    encoder.blocks(encoder.subsample(*speech()), random_subnet(encoder, 0))
    assert changed == {k for k, v in encoder.named_buffers() if k in before and not torch.equal(v, before[k])}


def test_scattered_batch_norm_statistics_are_written_back() -> None:
    encoder = conformer(conv_groups=4)
    module = encoder.encoders[0].conv_module
    module.size_norms["odd"] = torch.nn.BatchNorm1d(16, affine=False)
    module.train()
    mask = torch.ones(1, 1, 30, dtype=torch.bool)
    module(torch.randn(1, 30, 16), mask, kept=(0, 2), size="odd")
    mean = module.size_norms["odd"].running_mean.view(4, 4)
    assert mean[[0, 2]].abs().min() > 0 and mean[[1, 3]].abs().max() == 0


def test_forward_runs_the_chosen_subnet(tmp_path) -> None:
    sizes = {"small": {"depth": 0.34, "ffn": 0.5}}
    encoder = conformer(sizes=sizes)
    subnet = encoder.find_subnet("small")
    expected = encoder.blocks(encoder.subsample(*speech()), subnet)
    card = tmp_path / "card.json"
    write_json(card, {"name": "small", "kept": subnet.to_json()})
    for choice in ("small", str(card)):
        chosen = conformer(sizes=sizes, subnet=choice)
        chosen.load_state_dict(encoder.state_dict())
        torch.testing.assert_close(chosen(*speech())[0], expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_layer": "vgg"}, ["input_layer", "vgg", "conv2d6"]),
        ({"ffn_chunks": 5}, ["32", "5 chunks"]),
        ({"attention_heads": 3}, ["attention_heads", "3", "16"]),
        ({"conv_groups": 3}, ["conv_groups", "3", "16"]),
        ({"cnn_module_kernel": 4}, ["cnn_module_kernel", "4"]),
        ({"conv_norm": "group_norm"}, ["conv_norm", "group_norm", "layer_norm"]),
        ({"activation_type": "mish"}, ["activation_type", "mish", "swish"]),
        ({"rel_pos_type": "newest"}, ["rel_pos_type", "newest", "latest", "legacy"]),
        ({"pos_enc_layer_type": "legacy_rel_pos"}, ["pos_enc_layer_type", "legacy_rel_pos", "rel_pos with"]),
        ({"pos_enc_layer_type": "rel_pos", "selfattention_layer_type": "selfattn"}, ["pos_enc_layer_type", "abs_pos"]),
        ({"normalize_before": False}, ["normalize_before", "False", "True"]),
        (
            {"zero_triu": True, "qk_norm": True, "input_layer": "embed", "activation_type": "mish", "macaron": True},
            ["zero_triu: True", "qk_norm: True", "token ids", "activation_type: 'mish'", "unknown option 'macaron'"],
        ),
        ({"input_layer": None}, ["input_layer: null", "16", "20", "linear"]),
        ({"layer_drop_rate": 1.0}, ["layer_drop_rate", "1.0", "< 1"]),
        ({"stochastic_depth_rate": [0.1, 0.2]}, ["stochastic_depth_rate", "2 rates for 3 blocks"]),
        ({"ffn_chunk": 4}, ["ffn_chunk"]),
        ({"subnet": "tiny", "sizes": {"small": 0.6}}, ["tiny", "small", "full"]),
        ({"blocks": [{"ffn": 3}]}, ["blocks[0]", "macaron_chunks"]),
    ],
)
def test_a_wrong_option_ends_in_one_clear_line(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        conformer(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_card_of_another_encoder_is_refused(tmp_path) -> None:
    card = tmp_path / "card.json"
    write_json(card, {"name": "other", "kept": Subnet("other", frozenset({Key(7, "self_attn", 0)})).to_json()})
    with pytest.raises(UserError, match="layer 7"):
        conformer(subnet=str(card))
    write_json(card, {"name": "other"})
    with pytest.raises(UserError, match="kept"):
        conformer(subnet=str(card))


def test_too_short_input_says_how_much_is_needed() -> None:
    with pytest.raises(TooShortUttError, match="7 frames"):
        conformer()(torch.randn(1, 6, 20), torch.tensor([6]))
    assert conformer()(torch.randn(1, 7, 20), torch.tensor([7]))[0].shape == (1, 1, 16)


def test_adaptive_dropout_shrinks_with_the_width() -> None:
    encoder = conformer(dropout_rate=0.4)
    module = encoder.encoders[0].feed_forward.train()
    rates = []
    original = torch.nn.functional.dropout
    torch.nn.functional.dropout = lambda x, p, training: rates.append(p) or original(x, p, training)
    try:
        module(torch.randn(1, 2, 16))
        module(torch.randn(1, 2, 16), kept=(1,))
        module.adaptive_dropout = False
        module(torch.randn(1, 2, 16), kept=(1,))
    finally:
        torch.nn.functional.dropout = original
    assert rates == pytest.approx([0.4, 0.1, 0.4])


def test_disturb_moves_every_parameter() -> None:
    fresh = TodmConformerEncoder(input_size=20, output_size=16, linear_units=32, num_blocks=1, rel_pos_type="latest")
    before = [p.clone() for p in fresh.parameters()]
    disturb(fresh)
    assert not any(torch.equal(a, b) for a, b in zip(before, fresh.parameters()))


def test_a_stock_checkpoint_becomes_a_supernet_by_init_param(tmp_path) -> None:
    from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

    options = {"conv_groups": 2, "sizes": {"small": {"depth": 0.67, "ffn": 0.5}}}
    source = conformer(**options)
    stock = ConformerEncoder(input_size=20, **source.stock_conf(source.component_table().full())).eval()
    disturb(stock)
    torch.save({f"encoder.{name}": value for name, value in stock.state_dict().items()}, tmp_path / "stock.pth")
    holder = torch.nn.Module()
    holder.encoder = conformer(**options)
    load_pretrained_model(f"{tmp_path / 'stock.pth'}:encoder:encoder", holder, ignore_init_mismatch=False)
    torch.testing.assert_close(holder.encoder(*speech())[0], stock(*speech())[0], atol=1e-6, rtol=1e-5)


def test_a_card_must_not_borrow_the_name_of_another_size(tmp_path) -> None:
    encoder = conformer(sizes={"small": {"ffn": 0.5}})
    write_json(tmp_path / "card.json", {"name": "small", "kept": random_subnet(encoder, 1).to_json()})
    with pytest.raises(UserError, match="rename the card"):
        encoder.find_subnet(str(tmp_path / "card.json"))
