"""Averaged weights: what they average, where they are used, and what is left in checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import kaldiio
import pytest
import torch
from torch import nn

import espnet_todm
from espnet_todm.bin.asr_train import main
from espnet_todm.deploy.extract import load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.checkpoint_files import read_checkpoint
from espnet_todm.models.weight_average import WeightAverage, averaged_tensors, published
from tests.tiny_model import TOKENS, tiny_model
from tests.tiny_training import arguments, write_config, write_data
from tests.trainers.test_two_stage import learner

espnet_todm.register()


def moving_by(model: nn.Module, average: WeightAverage, updates: int) -> list[torch.Tensor]:
    """The first parameter before each of ``updates`` updates, between which it moves."""
    seen = []
    parameter = next(model.parameters())
    for update in range(updates):
        with torch.no_grad():
            parameter += math.sin(update)
        seen.append(parameter.detach().double().clone())
        average.update(model)
    return seen


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_average_is_over_a_share_of_the_updates(share: float) -> None:
    model, average = nn.Linear(3, 2), WeightAverage(share)
    seen = moving_by(model, average, 50)
    weights = torch.zeros(50, dtype=torch.float64)
    for update in range(50):
        by = min(1.0, 1 / (share * (update + 1)))
        weights *= 1 - by
        weights[update] = by
    assert weights.sum() == pytest.approx(1)
    if share == 1:
        assert torch.allclose(weights, torch.full((50,), 0.02, dtype=torch.float64))  # a plain mean
    expected = sum(weight * tensor for weight, tensor in zip(weights, seen))
    assert torch.allclose(average.averages["weight"].double(), expected, atol=1e-5)
    assert torch.equal(average.averages["bias"], model.bias)  # it did not move: exactly the same


def test_a_model_has_its_own_weights_again_bit_by_bit() -> None:
    model, average = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), WeightAverage(0.5)
    with average.applied_to(model):
        pass  # nothing to apply yet
    moving_by(model, average, 5)
    model(torch.randn(4, 3))  # moves the running statistics
    average.update(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.applied_to(model):
        assert torch.equal(model[0].weight, average.averages["0.weight"])
        assert torch.equal(model[1].running_mean, average.averages["1.running_mean"])
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise ZeroDivisionError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_has_both_and_the_file_of_an_epoch_the_average() -> None:
    model = learner(model={"average_weights": 0.5})
    moving_by(model, model.weight_average, 3)
    state, names = model.state_dict(), [name for name, _ in averaged_tensors(model)]
    assert not [name for name in names if name.startswith(("subnet_trainer", "weight_average"))]
    epoch = published(state)
    assert type(epoch) is type(state) and epoch._metadata == state._metadata
    assert set(epoch) == {name for name in state if not name.startswith("weight_average.")}
    for name, tensor in epoch.items():
        assert tensor is (state[f"weight_average.{name}"] if name in names else state[name])
    assert published(epoch) is epoch and published({"model": state})["model"] is state

    resumed = learner(model={"average_weights": 0.5})
    resumed.load_state_dict(state)
    for one in (model, resumed):
        assert one.weight_average is not None
        one.weight_average.update(one)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in model.state_dict().items())
    resumed.load_state_dict(epoch)  # begins a new one
    assert resumed.weight_average is not None and resumed.weight_average.updates == 0


def test_the_average_moves_with_the_model() -> None:
    model = tiny_model(model={"average_weights": 0.1})
    assert model.weight_average is not None
    model.weight_average.update(model)
    assert all(tensor.dtype == torch.float64 for tensor in model.double().weight_average.averages.values())


def test_sorted_components_begin_a_new_average() -> None:
    model = learner(model={"average_weights": 0.5})
    average = model.weight_average
    assert average is not None and model.subnet_trainer is not None
    moving_by(model, average, 3)
    model.subnet_trainer.decide(model, 0)
    average.update(model)
    assert all(torch.equal(tensor, average.averages[name]) for name, tensor in averaged_tensors(model))


def test_validation_and_models_of_epochs_use_the_average(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    config = write_config(tmp_path / "train.yaml", model_conf={"ctc_weight": 1.0, "average_weights": 0.3})
    main(arguments(data, tmp_path / "exp", "--config", str(config)))
    states = read_checkpoint(tmp_path / "exp/checkpoint.pth")
    epoch = torch.load(tmp_path / "exp/3epoch.pth", weights_only=True)
    name = "encoder.encoders.0.feed_forward.w_1.weight"
    assert torch.equal(epoch[name], states["model"][f"weight_average.{name}"])
    assert not torch.equal(epoch[name], states["model"][name])
    assert int(states["model"]["weight_average.updates"]) == 9  # before each step

    model = load_supernet(tmp_path / "exp/config.yaml", tmp_path / "exp/3epoch.pth").model.eval()
    table = kaldiio.load_scp(str(data / "feats.scp"))
    texts = dict(line.split() for line in (data / "text").read_text().splitlines())
    losses = []
    for name, speech in table.items():
        text = torch.tensor([[TOKENS.index(letter) for letter in texts[name]]])
        with torch.no_grad():
            stats = model(torch.tensor(speech)[None], torch.tensor([len(speech)]), text, torch.tensor([text.shape[1]]))[
                1
            ]
        losses.append(float(stats["loss_full"]))
    reported = states["reporter"]["stats"][3]["valid"]["loss_full"]
    assert sum(losses) / len(losses) == pytest.approx(reported, rel=1e-4)


@pytest.mark.parametrize("value", [0, 1.5, "all"])
def test_a_share_is_a_number_up_to_one(value: object) -> None:
    with pytest.raises(UserError, match="average_weights"):
        tiny_model(model={"average_weights": value})
