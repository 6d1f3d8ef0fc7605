"""In how many updates of a training a size is trained."""

from __future__ import annotations

from espnet_todm.models.subnet_trainer import SizeUpdates
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from tests.tiny_model import tiny_model

SIZES = {"large": {"ffn": 0.75}, "middle": {"ffn": 0.5}, "small": {"depth": 0.34, "ffn": 0.25}}


def test_sizes_that_are_drawn_are_trained_in_a_part_of_the_updates() -> None:
    model = tiny_model(sizes=SIZES)
    trainer = KDTrainer(model, warmup_steps=10)
    counts = {name: count.sliced for name, count in trainer.size_updates(model.encoder.sizes, 110).items()}
    assert counts["full"] == 110 and counts["small"] == 100
    assert counts["large"] + counts["middle"] == 100 and 25 < counts["large"] < 75


def test_a_subnet_of_a_search_space_counts_for_the_size_that_it_is() -> None:
    model = tiny_model(sizes={"small": {"ffn": 0.5}, "other": {"ffn": 0.25, "heads": 0.5}})
    trainer = KDTrainer(model, search_space={"ffn": [0.5, 1.0]}, random_subnets=0)
    counts = trainer.size_updates(model.encoder.sizes, 5)
    assert counts == {"full": SizeUpdates(5), "small": SizeUpdates(5), "other": SizeUpdates(0)}


def test_one_pass_with_many_losses_trains_all_sizes_and_a_size_alone_itself() -> None:
    model = tiny_model(sizes={"small": {"depth": 0.34, "drop": "last"}})
    assert set(AuxLossTrainer(model).size_updates(model.encoder.sizes, 7).values()) == {SizeUpdates(7)}
    counts = SingleTrainer(model, size="small").size_updates(model.encoder.sizes, 7)
    assert counts == {"full": SizeUpdates(0), "small": SizeUpdates(7)}
