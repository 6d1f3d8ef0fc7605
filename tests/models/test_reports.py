"""What training and validation report: ESPnet's own names too, and just what is told beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_todm.errors import UserError
from espnet_todm.models.reports import reported
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.models.test_transducer import transducer
from tests.tiny_model import TOKENS, batch, run, tiny_model

SHARES = {"middle": 0.8, "small": 0.7}
# kind of model -> builder(options of the model, options of the encoder)
KINDS: dict[str, Any] = {
    "CTC": lambda model, encoder: tiny_model(1.0, model, **encoder),
    "CTC/attention": lambda model, encoder: tiny_model(0.3, model, **encoder),
    "attention": lambda model, encoder: tiny_model(0.0, model, **encoder),
    "transducer": lambda model, encoder: transducer(trainer=None, model=model, **encoder),
    "transducer with CTC": lambda model, encoder: transducer(trainer=None, ctc_weight=0.3, model=model, **encoder),
}
TRAINERS: dict[str, Any] = {
    "kd": (KDTrainer, {}),
    "kd with a warm-up": (KDTrainer, {"warmup_steps": 2}),
    "kd from ranges": (KDTrainer, {"search_space": {"ffn": [0.5, 1.0]}}),
    "single": (SingleTrainer, {"size": "small"}),
    "ortho_softmax": (TwoStageTrainer, {"stage1_steps": 2, "warmup_steps": 1}),
    "aux_loss": (AuxLossTrainer, {}),
}
DEPTHS = {"middle": {"depth": 0.67, "drop": "last"}, "small": {"depth": 0.34, "drop": "last"}}


def make(kind: str, trainer: str, **options: Any) -> TodmModel:
    cls, conf = TRAINERS[trainer]
    sizes = {"ortho_softmax": {"sizes": SHARES}, "aux_loss": {"sizes": DEPTHS}}.get(trainer, {})
    model: TodmModel = KINDS[kind](options, sizes)
    model.subnet_trainer = cls(model, **conf)
    return model


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_beforehand_is_what_every_epoch_reports(kind: str, trainer: str) -> None:
    model, of = make(kind, trainer).train(), batch()
    told = reported(model)
    for step in range(4):
        assert set(told["train"]) <= run(model.train(), of, step)[1].keys()
        with torch.no_grad():
            assert set(told["valid"]) == run(model.eval(), of, step)[1].keys()


@pytest.mark.parametrize("rates", [("report_cer",), ("report_wer",), (), ("report_cer", "report_wer")])
@pytest.mark.parametrize("kind", KINDS)
def test_error_rates_are_those_that_are_asked_for(kind: str, rates: tuple[str, ...]) -> None:
    options = {name: name in rates for name in ("report_cer", "report_wer")}
    model = make(kind, "kd", **options).eval()
    with torch.no_grad():
        stats = run(model, batch())[1]
    assert set(reported(model)["valid"]) == stats.keys()
    part = "_transducer" if "transducer" in kind else ""
    expected = {f"{name[7:]}{part}" for name in rates} if kind != "CTC" else set()
    expected |= {"cer_ctc"} if "CTC" in kind and rates else set()
    found = {key for key in stats if key[:3] in ("cer", "wer") and not key.endswith(("_full", "_middle", "_small"))}
    assert found == expected


@pytest.mark.parametrize("kind", ["CTC", "CTC/attention", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_espnets_names_have_the_values_of_espnets_model(kind: str, training: bool) -> None:
    """Of the full size; ``loss`` is the training's own, in validation the mean over sizes."""
    model, of = make(kind, "kd", lsm_weight=0.1).train(training), batch(3)
    arguments = of.speech, of.speech_lengths, of.text, of.text_lengths
    with torch.set_grad_enabled(training):
        stats = run(model, of)[1]
        _, stock, _ = ESPnetASRModel.forward(model, *arguments)
    known = {key: value for key, value in stock.items() if value is not None and key != "loss"}
    assert known
    for key, value in known.items():
        torch.testing.assert_close(stats[key], value.squeeze().to(stats[key].dtype), msg=key)
    torch.testing.assert_close(stats["loss_full"], stock["loss"].squeeze())


def test_a_size_alone_has_espnets_names() -> None:
    model, of = make("CTC/attention", "single").eval(), batch()
    with torch.no_grad():
        stats = run(model, of)[1]
    for key in ("acc", "cer", "cer_ctc", "loss_ctc"):
        assert stats[key] == stats[f"{key}_small"]
    assert stats["loss"] == stats["loss_small"] and "acc_full" not in stats


def test_wer_of_a_transducer_counts_words_and_cer_labels() -> None:
    model = transducer(trainer=None)
    model.error_calculator.calculator.space = "b"
    a, space, c, d = (TOKENS.index(token) for token in "abcd")
    text = torch.tensor([[a, space, c, c], [d, -1, -1, -1]])  # "a cc" and "d"
    rates = model.error_calculator.of_transducer([[a, space, c], [d]], text, torch.tensor([4, 1]))
    assert rates == {"cer_transducer": 1 / 5, "wer_transducer": 1 / 3}


def test_a_size_cannot_have_the_name_of_a_part_of_the_loss() -> None:
    for name in ("ctc", "att", "transducer"):
        with pytest.raises(UserError, match=f"sizes: the name '{name}' is not possible: loss_{name}"):
            tiny_model(sizes={name: {"depth": 0.5}})
