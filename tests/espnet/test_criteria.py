"""Criteria for best models, early stopping and schedules that nothing would report: one line before training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from espnet2.tasks.abs_task import scheduler_classes
from espnet2.tasks.asr import ASRTask

from espnet_todm.errors import UserError
from espnet_todm.espnet.criteria import DEFAULT_BEST, check_criteria
from espnet_todm.trainers.kd import KDTrainer
from tests.tiny_model import SIZES, tiny_model, trained_by

PLATEAU = scheduler_classes["reducelronplateau"]


def options(**given: Any) -> SimpleNamespace:
    base = {
        "best_model_criterion": [["valid", "loss", "min"]],
        "patience": None,
        "early_stopping_criterion": ("valid", "loss", "min"),
        "val_scheduler_criterion": ("valid", "loss"),
    }
    return SimpleNamespace(**{**base, **given})


def test_the_default_is_espnets() -> None:
    assert tuple(map(tuple, ASRTask.get_parser().get_default("best_model_criterion"))) == DEFAULT_BEST


@pytest.mark.parametrize(
    ("ctc_weight", "given"),
    [
        (
            0.3,
            {"best_model_criterion": [["valid", "acc", "max"], ["train", "acc", "max"], ["valid", "cer_small", "min"]]},
        ),
        (
            0.0,
            {"best_model_criterion": [["valid", "acc", "max"], ["valid", "wer", "min"], ["train", "loss_full", "min"]]},
        ),
        (1.0, {"best_model_criterion": [["valid", "cer_ctc", "min"], ["valid", "cer_ctc_full", "min"]]}),
        (1.0, {"best_model_criterion": list(DEFAULT_BEST)}),  # no accuracy here, but nobody asked for it
        (1.0, {"early_stopping_criterion": ["valid", "acc", "max"]}),  # patience is off
        (0.3, {"early_stopping_criterion": ["valid", "acc", "max"], "patience": 0}),
        (1.0, {"val_scheduler_criterion": ["valid", "acc"]}),  # the schedule does not look
    ],
)
def test_what_is_reported_or_not_used_passes(ctc_weight: float, given: dict[str, Any]) -> None:
    check_criteria(trained_by(ctc_weight=ctc_weight), options(**given), [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"best_model_criterion": [["valid", "acc", "max"]]}, ["best_model_criterion: [valid, acc, max]"]),
        ({"best_model_criterion": [["test", "loss", "min"]]}, ["[test, loss, min]"]),
        ({"best_model_criterion": [["train", "loss_large", "min"]]}, ["[train, loss_large, min]"]),
        ({"best_model_criterion": [["valid", "acc"]]}, ["best_model_criterion: [valid, acc]"]),
        ({"best_model_criterion": ["valid,acc,max"]}, ["best_model_criterion: 'valid,acc,max'"]),
        (
            {"early_stopping_criterion": ["valid", "acc", "max"], "patience": 3},
            ["early_stopping_criterion: [valid, acc, max]"],
        ),
        (
            {"val_scheduler_criterion": ["valid", "acc"], "best_model_criterion": [["valid", "wer", "min"]]},
            ["val_scheduler_criterion: [valid, acc]", "best_model_criterion: [valid, wer, min]"],
        ),
    ],
)
def test_what_is_not_reported_is_refused_with_all_that_is(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_criteria(trained_by(), options(**given), [PLATEAU])
    told = "train: loss, loss_ctc, loss_full, loss_middle, loss_small; valid: loss, loss_ctc, cer_ctc, loss_full, "
    for word in (*words, told):
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def test_a_mode_that_is_none_is_said_to_be_that() -> None:
    with pytest.raises(
        UserError, match=r"^best_model_criterion: \[valid, cer_ctc, low\]: the last word must be min or max$"
    ):
        check_criteria(trained_by(), options(best_model_criterion=[["valid", "cer_ctc", "low"]]), [])


def test_a_size_that_steps_draw_is_not_reported_by_each() -> None:
    drawn = tiny_model(sizes={"large": {"ffn": 0.5}, **SIZES}).train()
    drawn.subnet_trainer = KDTrainer(drawn)
    for size in ("large", "middle"):
        with pytest.raises(UserError, match=rf"\[train, loss_{size}, min\]"):
            check_criteria(drawn, options(best_model_criterion=[["train", f"loss_{size}", "min"]]), [])
    check_criteria(trained_by(), options(best_model_criterion=[["train", "loss_middle", "min"]]), [])


@pytest.mark.parametrize("given", [[], None, "valid,loss,min"])
def test_no_criterion_at_all_would_keep_no_model(given: Any) -> None:
    with pytest.raises(UserError, match=r"best_model_criterion: .* must be a list such as \[\[valid, loss, min\]\]"):
        check_criteria(trained_by(), options(best_model_criterion=given), [])
