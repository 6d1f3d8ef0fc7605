"""Sizes that own parameters (``output_layers: per_size``, ``own_affine``, ``own_branch_scale``) in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import espnet_todm
from espnet_todm.bin.asr_train import main
from espnet_todm.card import read_card
from espnet_todm.components import Subnet
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.models.own import own_pairs
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, run, tiny_model
from tests.tiny_training import arguments, write_config, write_data
from tests.trainers.test_two_stage import SHARES, adam, train

espnet_todm.register()
OWN: dict[str, Any] = {"own_affine": True, "own_branch_scale": 1.0}
PER_SIZE = {"output_layers": "per_size"}


def ctc(trainer: Any = KDTrainer, **conf: Any) -> TodmModel:
    sizes = {"sizes": SHARES} if trainer is TwoStageTrainer else {}
    model = tiny_model(model=PER_SIZE, **OWN, **sizes).train()
    model.subnet_trainer = trainer(model, **conf)
    return model


def rnnt(**conf: Any) -> TodmModel:
    return transducer(ctc_weight=0.3, model={**PER_SIZE, "transducer_conf": {"prune_range": 3}}, conf=conf, **OWN)


def owned(model: TodmModel) -> dict[str, torch.Tensor]:
    parts = ("encoder.own.", "size_outputs.", "size_joints.")
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(parts)}


@pytest.mark.parametrize("make", [ctc, rnnt])
def test_each_size_trains_and_distils_with_what_it_owns(make: Any) -> None:
    model = make()
    loss, stats = run(model, batch())
    loss.backward()
    assert {"loss_full", "kd_middle", "kd_small"} <= stats.keys()
    for name, parameter in owned(model).items():
        size, layer = name.split(".")[2 if "encoder" in name else 1], name.split(".blocks.")[-1].split(".")[0]
        if ".blocks." in name and int(layer) not in model.encoder.sizes[size].layers:
            assert parameter.grad is None
        else:
            assert bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any()), name


@pytest.mark.parametrize("make", [ctc, rnnt])
def test_what_a_size_owns_starts_from_what_the_warm_up_has_learned(make: Any) -> None:
    model = make(warmup_steps=2)
    optimizer = adam(model)
    before = {name: value.detach().clone() for name, value in owned(model).items()}
    train(model, range(2), optimizer)
    assert all(torch.equal(value, before[name]) for name, value in owned(model).items())
    _, stats = run(model, batch(), 2)  # prepares step 2
    for size in ("middle", "small"):
        pairs = [pair for some in own_pairs(model, size).values() for pair in some]
        assert len(pairs) > 10
        for shared, own in pairs:
            assert all(torch.equal(own.get_parameter(n), shared.get_parameter(n)) for n, _ in own.named_parameters())
    subsampled, small = model.run_subsampling(batch()), model.encoder.sizes["small"]
    outputs = [model.encoder.blocks(subsampled, subnet) for subnet in (small, Subnet("another", small.components))]
    assert torch.equal(*outputs) and "kd_small" in stats
    train(model, range(3, 4), optimizer)
    state = {name: value.detach().clone() for name, value in owned(model).items()}
    train(model, range(4, 5), optimizer)  # nothing starts again
    assert any(not torch.equal(value, state[name]) for name, value in owned(model).items())


def test_a_size_that_joins_later_starts_then() -> None:
    model = ctc(warmup_steps=1, join={"small": 3})
    train(model, range(3), adam(model))
    model.subnet_trainer.prepare(model, 3, TrainingSetup())
    same = {
        size: all(torch.equal(own.weight, norm.weight) for norm, own in model.encoder.own_pairs(size))
        for size in ("middle", "small")
    }
    assert same == {"middle": False, "small": True}


def test_learned_sizes_keep_what_they_own_at_the_switch() -> None:
    model = ctc(TwoStageTrainer, stage1_steps=3, warmup_steps=1)
    optimizer, of = adam(model), batch()
    train(model, range(3), optimizer)
    model.eval()
    subsampled = model.run_subsampling(of)
    before = {s.name: model.run_subnet(subsampled, of, s).loss for s in model.subnet_trainer.evaluated(model, 3)}
    model.train()
    model.subnet_trainer.decide(model, 2, [optimizer])
    model.eval()
    for size, loss in before.items():
        torch.testing.assert_close(model.run_subnet(subsampled, of, model.encoder.sizes[size]).loss, loss)
    train(model.train(), range(3, 5), optimizer)
    again = ctc(TwoStageTrainer, stage1_steps=3)
    again.load_state_dict(model.state_dict())
    assert again.encoder.sizes == model.encoder.sizes


@pytest.mark.parametrize(
    ("model", "encoder", "what"),
    [(PER_SIZE, {}, "output_layers: per_size"), ({}, {"own_affine": True}, "own_affine and own_branch_scale")],
)
def test_a_search_space_does_not_train_what_sizes_own(model: Any, encoder: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"search_space: no step trains a named size, so {what} would stay untrained"):
        KDTrainer(tiny_model(model=model, **encoder), search_space={"depth": [0.5, 1.0]})


def test_one_pass_of_all_sizes_has_no_norms_of_their_own() -> None:
    model = tiny_model(**OWN, sizes={"small": {"depth": 0.34, "drop": "last"}})
    with pytest.raises(UserError, match="own_affine, own_branch_scale: aux_loss runs all sizes in one pass"):
        AuxLossTrainer(model)


RUN: dict[str, Any] = {
    "subnet_trainer_conf": {"warmup_steps": 4, "kd_weight": 0.5},
    "encoder_conf": {
        "output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 2, "macaron_style": True,
        "rel_pos_type": "latest", "cnn_module_kernel": 5, "sizes": {"small": {"depth": 0.5, "ffn": 0.5}}, **OWN,
    },
}  # fmt: skip
RNNT: dict[str, Any] = {
    "decoder": "todm_stateless",
    "decoder_conf": {"hidden_size": 12},
    "joint_net_conf": {"joint_space_size": 10},
}


@pytest.mark.parametrize("decoder", ["ctc", "transducer"])
def test_a_resumed_run_is_the_undisturbed_one_and_its_sizes_are_extracted(tmp_path: Path, decoder: str) -> None:
    """Three updates an epoch: the size begins in epoch 2, which a resumed run trains."""
    data = write_data(tmp_path / "data")
    more = {"model_conf": {"ctc_weight": 1.0, **PER_SIZE}}
    if decoder == "transducer":
        more = {**RNNT, "model_conf": {"ctc_weight": 0.3, **PER_SIZE, "transducer_conf": {"prune_range": 3}}}
    write_config(data / "config.yaml", **RUN, **more, specaug=None, specaug_conf=None)
    main(arguments(data, tmp_path / "whole", "--max_epoch", "3"))
    for epochs in ("1", "3"):
        main(arguments(data, tmp_path / "parts", "--max_epoch", epochs))
    whole, parts = (torch.load(tmp_path / run / "3epoch.pth", weights_only=True) for run in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    supernet = load_supernet(tmp_path / "whole" / "config.yaml", tmp_path / "whole" / "3epoch.pth")
    for size, subnet in supernet.encoder.sizes.items():
        extract(supernet, subnet, tmp_path / size)
        small, config = load_extracted(tmp_path / size)
        assert read_card(tmp_path / size / "card.json")["cost"]["params"] == sum(p.numel() for p in small.parameters())
        assert config["encoder"] == ("conformer" if decoder == "ctc" else "todm_conformer")
        assert not {"own_affine", "own_branch_scale"} & config["encoder_conf"].keys()
