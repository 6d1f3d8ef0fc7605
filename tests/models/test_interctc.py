"""Intermediate CTC of sizes: the loss is ESPnet's, every trainer's step takes it, and a size is extracted with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_todm.errors import UserError
from espnet_todm.models.outside import component_table
from espnet_todm.models.reports import reported
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.conftest import conformer, disturb
from tests.tiny_model import batch, gradients, run, tiny_model

PLACES = {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True}
SIZES = {"small": {"layers": [0, 2]}, "first": {"depth": 0.34, "drop": "last"}}


def model_of(ctc_weight: float = 0.3, weight: float = 0.4, sizes: Any = SIZES, **options: Any) -> Any:
    conf = {**options.pop("model", {}), "interctc_weight": weight}
    supernet = conformer(**{**PLACES, "sizes": sizes, "rel_pos_type": "latest", **options})
    model = tiny_model(ctc_weight, conf, supernet)
    disturb(model)
    return model


def test_the_loss_of_the_full_size_is_espnets() -> None:
    ours = model_of().eval()
    full = ours.encoder.component_table().full()
    parts = {name: getattr(ours, name) for name in ("frontend", "specaug", "normalize", "preencoder", "postencoder")}
    encoder = ConformerEncoder(20, **ours.encoder.stock_conf(full))
    stock = ESPnetASRModel(
        vocab_size=ours.vocab_size,
        token_list=ours.token_list,
        encoder=encoder,
        decoder=ours.decoder,
        ctc=ours.ctc,
        joint_network=None,
        ctc_weight=0.3,
        interctc_weight=0.4,
        **parts,
    )
    stock.encoder.load_state_dict(ours.encoder.extracted_state(full))
    of = batch()
    of.speech_lengths[:] = of.speech.size(1)  # padded batches differ by design
    output = ours.run_subnet(ours.run_subsampling(of), of, full)
    loss, stats, _ = stock.eval()(of.speech, of.speech_lengths, of.text.clone(), of.text_lengths)
    torch.testing.assert_close(output.loss, loss.squeeze(), atol=1e-5, rtol=1e-5)
    for name in ("loss_ctc", "loss_interctc_layer1", "loss_interctc_layer2"):
        torch.testing.assert_close(output.stats[name], stats[name].squeeze(), atol=1e-5, rtol=1e-5)


def test_a_size_without_a_place_has_the_plain_loss() -> None:
    ours = model_of().eval()
    first, of = ours.encoder.find_subnet("first"), batch()
    subsampled = ours.run_subsampling(of)
    mixed = ours.run_subnet(subsampled, of, first)
    ours.interctc_weight = 0.0
    torch.testing.assert_close(mixed.loss, ours.run_subnet(subsampled, of, first).loss)
    assert not any("interctc" in name for name in mixed.stats)


@pytest.mark.parametrize(
    ("trainer", "conf", "sizes"),
    [
        (KDTrainer, {}, SIZES),
        (SingleTrainer, {"size": "small"}, SIZES),
        (AuxLossTrainer, {}, {"first": {"depth": 0.67, "drop": "last"}}),
        (TwoStageTrainer, {"stage1_steps": 2}, {"middle": 0.7, "small": 0.45}),
    ],
)
def test_trainers_learn_what_is_fed_back(trainer: Any, conf: dict, sizes: Any) -> None:
    model = model_of(1.0, sizes=sizes, conv_norm="layer_norm").train()
    model.subnet_trainer = trainer(model, **conf)
    for step in range(4):
        model.zero_grad()
        loss, _ = run(model, batch(seed=step), step)
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(gradients(model)["encoder.conditioning_layer.weight"].any())


def test_validation_reports_places_under_espnets_names() -> None:
    model = model_of(1.0).eval()
    model.subnet_trainer = KDTrainer(model)
    _, stats = run(model, batch())
    assert {"loss_interctc_layer1", "cer_interctc_layer2"} <= stats.keys()
    assert set(reported(model)["valid"]) <= stats.keys()
    assert not any("interctc" in name and name.endswith(("small", "first")) for name in stats)


def test_the_model_pays_for_what_feeds_back() -> None:
    with_layer, without = model_of(1.0), model_of(1.0, interctc_use_conditioning=False)
    vocabulary, size = with_layer.vocab_size, 16
    costs = [component_table(model).rest for model in (with_layer, without)]
    assert costs[0].params - costs[1].params == vocabulary * size + size
    assert costs[0].flops > costs[1].flops
    total = component_table(with_layer).cost(component_table(with_layer).full()).params
    assert total == sum(p.numel() for p in with_layer.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ctc_weight": 0.0}, ["interctc_weight: 0.4", "ctc_weight is 0"]),
        ({"ctc_weight": 0.0, "weight": 0.0}, ["interctc_use_conditioning: True", "ctc_weight is 0"]),
        ({"model": {"aux_ctc": {"1": "lid"}}}, ["aux_ctc", "of the text"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        model_of(**options)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
