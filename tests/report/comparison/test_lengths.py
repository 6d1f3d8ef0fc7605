"""What a longer training multiplies."""

from __future__ import annotations

from typing import Any

from espnet_todm.report.comparison.lengths import stretched

CONFIG: dict[str, Any] = {
    "max_epoch": 2,
    "patience": None,
    "batch_bins": 130000,
    "num_iters_per_epoch": 500,
    "optim_conf": {"lr": 0.03, "clipping_update_period": 100},
    "scheduler_conf": {"warmup_steps_list": [0, 120, 600], "warmup_lr_list": [0.0, 0.03, 0.0003], "lr_epochs": 3.5},
    "subnet_trainer_conf": {
        "warmup_steps": 200,
        "stage1_share": 0.5,
        "stage1_steps": None,
        "random_subnets": 1,
        "join": {"medium": 100, "small": 0.3},
        "temperature_decay": 0.81,
    },
    "model_conf": {"ctc_weight": 0.2, "transducer_conf": {"warmup_steps": 300, "prune_range": 5}},
}


def test_all_that_counts_updates_is_multiplied_and_nothing_else() -> None:
    longer = stretched(CONFIG, 2)
    assert longer == {
        **CONFIG,
        "max_epoch": 4,
        "scheduler_conf": {
            "warmup_steps_list": [0, 240, 1200],
            "warmup_lr_list": [0.0, 0.03, 0.0003],
            "lr_epochs": 7.0,
        },
        "subnet_trainer_conf": {
            **CONFIG["subnet_trainer_conf"],
            "warmup_steps": 400,
            "join": {"medium": 200, "small": 0.3},
            "temperature_decay": 0.9,
        },
        "model_conf": {"ctc_weight": 0.2, "transducer_conf": {"warmup_steps": 600, "prune_range": 5}},
    }
    assert stretched(CONFIG, 1) == CONFIG


def test_a_scheduler_without_options_stays() -> None:
    assert stretched({"max_epoch": 1, "scheduler_conf": None}, 8) == {"max_epoch": 8, "scheduler_conf": None}


def test_values_that_are_no_numbers_stay_for_the_training_to_refuse() -> None:
    config = {"subnet_trainer_conf": {"join": {"small": "0.3", "medium": None}, "temperature_decay": "1"}}
    assert stretched(config, 2) == config
