"""Utterances without one frame of the encoder's output, and texts without words: every loss stays finite, whoever trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import kaldiio
import numpy as np
import pytest
import torch

from espnet_todm.bin.asr_train import main as asr_train
from espnet_todm.models.batch import Batch
from espnet_todm.models.odd_utterances import heard, lengthen
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.checks import build
from tests.conftest import e_branchformer, mh_ssm
from tests.models.test_transducer import transducer
from tests.tiny_model import batch, gradients, run, tiny_model, trained_by
from tests.tiny_training import arguments, write_config, write_data

MODELS: dict[str, Callable[[], TodmModel]] = {
    "CTC": trained_by,
    "CTC that keeps infinite losses": lambda: _infinite(trained_by()),
    "CTC/attention": lambda: trained_by(ctc_weight=0.3),
    "transducer": transducer,
    "pruned transducer with CTC": lambda: transducer(ctc_weight=0.3, model={"transducer_conf": {"prune_range": 2}}),
}


def _infinite(model: TodmModel) -> TodmModel:
    model.ctc.ctc_loss = torch.nn.CTCLoss(reduction="none", zero_infinity=False)
    return model


def utterances(*frames: int, words: bool = True) -> Batch:
    """A batch of utterances of so many frames, of which none counts more than the longest."""
    of = batch(len(frames))
    of = replace(of, speech=of.speech[:, : max(frames)], speech_lengths=torch.tensor(frames))
    if words:
        return of
    return replace(of, text=torch.full_like(of.text, -1), text_lengths=torch.zeros_like(of.text_lengths))


ODD = {
    "all too short": utterances(6, 4),
    "one alone, too short": utterances(1),
    "one of nothing": utterances(0),
    "nothing among others": utterances(60, 0, 50),
    "too short among others": utterances(60, 3, 50),
    "no words": utterances(60, 50, words=False),
    "too short, and no words": utterances(6, 4, words=False),
}


def check(model: TodmModel, of: Batch) -> None:
    """One step of training and one of validation: finite losses, finite gradients."""
    loss, stats = run(model.train(), of)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(value) for value in stats.values()), stats
    assert all(torch.isfinite(g).all() for g in gradients(model).values() if g is not None)
    with torch.no_grad():
        loss, stats = run(model.eval(), of)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value) for key, value in stats.items() if key.startswith("loss")), stats


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", MODELS)
def test_every_loss_is_finite(kind: str, odd: str) -> None:
    check(MODELS[kind](), ODD[odd])


@pytest.mark.parametrize("encoder", [e_branchformer, mh_ssm])
@pytest.mark.parametrize("layer", ["conv2d6", "dw_conv2d", "vgg4"])
def test_every_input_layer_takes_less_than_a_frame(encoder: Any, layer: str) -> None:
    model = tiny_model(supernet=encoder(input_layer=layer, sizes={"small": {"depth": 0.67}}))
    model.subnet_trainer = KDTrainer(model)
    for odd in ("all too short", "one of nothing", "too short among others"):
        check(model, ODD[odd])


@pytest.mark.parametrize(
    ("trainer", "conf"),
    [
        (SingleTrainer, {"size": "small"}),
        (AuxLossTrainer, {}),
        (TwoStageTrainer, {"stage1_steps": 0, "kd_weight": 0.5}),
        (TwoStageTrainer, {"stage1_steps": 9}),
    ],
)
def test_every_trainer_takes_a_batch_of_nothing(trainer: type[SubnetTrainer], conf: dict[str, Any]) -> None:
    middle = {"depth": 0.67, "drop": "last"} if trainer is AuxLossTrainer else 0.8
    model = tiny_model(sizes={"small": 0.34 if middle == 0.8 else {"depth": 0.34, "drop": "last"}, "middle": middle})
    model.subnet_trainer = build(trainer, conf, "subnet_trainer_conf", model)
    for odd in ("all too short", "one of nothing"):
        check(model, ODD[odd])


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_not_heard_changes_nothing_but_the_mean(kind: str) -> None:
    """A batch with one utterance more that has no frame: the same sum of losses, the same gradients, by a larger batch."""
    losses, found = [], []
    for frames in ((60, 50), (60, 50, 3)):
        torch.manual_seed(0)
        model, of = MODELS[kind](), utterances(*frames)
        text = batch(3).text[: len(frames)]  # the same first two utterances in both
        of = replace(of, speech=batch(3).speech[: len(frames)], text=text, text_lengths=(text >= 0).sum(1))
        loss, _ = run(model, of)
        (loss * len(frames)).backward()
        losses.append(loss.item() * len(frames))
        found.append(gradients(model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_rates_without_a_reference_are_reported_as_no_number(kind: str) -> None:
    """Processes that share a batch add up what each reports under one name: a name must not be missing in one of them."""
    model = MODELS[kind]().eval()
    with torch.no_grad():
        spoken, silent = (run(model, utterances(60, 50, words=words))[1] for words in (True, False))
    assert spoken.keys() == silent.keys()
    rates = [key for key in silent if key.startswith(("cer", "wer"))]
    assert rates and all(math.isnan(silent[key]) for key in rates)
    assert not any(math.isnan(spoken[key]) for key in rates)


def test_normalisation_over_an_utterance_of_nothing() -> None:
    from espnet2.layers.utterance_mvn import UtteranceMVN

    model = trained_by()
    model.normalize = UtteranceMVN(norm_vars=True)
    for odd in ODD:
        check(model, ODD[odd])


def test_espnets_training_and_validation_take_them(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_config(data / "config.yaml", max_epoch=1, batch_size=1)  # each alone in a batch
    odd = {
        "utt12": np.ones((3, 20), np.float32),
        "utt13": np.zeros((0, 20), np.float32),
        "utt14": np.ones((60, 20), np.float32),
    }
    kaldiio.save_ark(str(data / "odd.ark"), odd, scp=str(data / "odd.scp"))
    rows = {"text": "abc", "speech_shape": "3,20", "text_shape": "3,10"}
    tables = {name: "".join(f"{utterance} {row}\n" for utterance in odd) for name, row in rows.items()}
    tables.update({"feats.scp": (data / "odd.scp").read_text(), "text": "utt12 abc\nutt13 abc\nutt14 \n"})
    for name, lines in tables.items():
        (data / name).write_text((data / name).read_text() + lines)
    asr_train(arguments(data, tmp_path / "exp"))
    assert (tmp_path / "exp" / "valid.loss.best.pth").exists()
    model = torch.load(tmp_path / "exp" / "1epoch.pth", map_location="cpu")
    assert all(torch.isfinite(value).all() for value in model.values() if value.is_floating_point())


def test_lengthen_and_heard() -> None:
    features = torch.ones(2, 3, 4)
    assert lengthen(features, 3) is features
    assert lengthen(features, 5).shape == (2, 5, 4) and not lengthen(features, 5)[:, 3:].any()
    assert heard(torch.tensor([2, 1])) is None
    assert heard(torch.tensor([2, 0, 1])).tolist() == [0, 2] and heard(torch.tensor([0])).tolist() == []
