"""Mixed precision where it helps: told to a CPU that would only emulate it, it is float32. What is float32 in any case."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Callable

import pytest
import torch

from espnet_todm.losses.alpha_divergence import KINDS, Divergence
from espnet_todm.losses.consistency import ctc_consistency
from espnet_todm.losses.distillation import ctc_frame_distillation, token_distillation
from espnet_todm.models import autocast
from espnet_todm.models.autocast import Autocast
from espnet_todm.models.tasks import with_ends
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.trainers.agreement import AgreementOfStep
from espnet_todm.trainers.distillation_weight import DistillationWeight
from espnet_todm.trainers.ranks import per_frame
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.compat import autocasts_on_cpu, runs_lstm_on_cpu
from tests.tiny_model import batch, run, tiny_model

CPU = torch.device("cpu")
amp = pytest.mark.skipif(not autocasts_on_cpu(torch.bfloat16), reason="this torch cannot autocast norms on a CPU")


def dtype_inside(chosen: Autocast) -> torch.dtype:
    with chosen(CPU):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(("name", "capable"), [(None, True), ("bfloat16", True), ("bfloat16", False)])
def test_a_type_is_used_where_the_cpu_has_it(
    name: str, capable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autocast, "cpu_has", lambda dtype: capable)
    wanted = name is not None and capable and autocasts_on_cpu(torch.bfloat16)
    assert dtype_inside(Autocast(name)) == (torch.bfloat16 if wanted else torch.float32)
    assert ("float32 there" in caplog.text) == (name is not None and not wanted)


@pytest.mark.parametrize("capable", [True, False])
def test_a_cpu_whose_torch_has_no_such_lstm_computes_models_with_one_in_float32(
    capable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autocast, "cpu_has", lambda dtype: True)
    monkeypatch.setattr(autocast, "autocasts_on_cpu", lambda dtype: True)
    monkeypatch.setattr(autocast, "runs_lstm_on_cpu", lambda dtype: capable)
    assert Autocast("bfloat16").on_cpu and Autocast("bfloat16", lstm=True).on_cpu == capable
    assert ("float32 there" in caplog.text) == (not capable)


def test_the_trial_of_an_lstm_says_what_an_lstm_then_does() -> None:
    lstm, x = torch.nn.LSTM(8, 8), torch.ones(2, 3, 8)
    with nullcontext() if runs_lstm_on_cpu(torch.bfloat16) else pytest.raises(RuntimeError), in_bfloat16():
        lstm(x)[0].float().sum().backward()


# ---- what stays float32 under use_amp, whose autocast is around the whole step --------------------------------------


def in_bfloat16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@amp
@pytest.mark.parametrize(
    "conf",
    [
        *({"penalty": norm, "penalty_schedule": "constant"} for norm in ("l2_sqrt", "l2", "l1")),
        {"penalty_schedule": "learned"},
        {"selection": "top_k"},
        {"selection": "zero_out"},
    ],
    ids=str,
)
def test_what_a_selection_learns_is_float32(conf: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(sizes={"small": 0.6, "middle": 0.8}).train()
    trainer = TwoStageTrainer(model, stage1_steps=10, **conf)
    model.subnet_trainer, gates_of, found = trainer, trainer._gates, []

    def recorded(*args: Any) -> Any:
        gates = gates_of(*args)
        found[-1].update({name: gate.detach() for name, gate in (gates or {}).items()})
        return gates

    monkeypatch.setattr(trainer, "_gates", recorded)
    for context in (nullcontext(), in_bfloat16()):
        found.append({})
        with context:
            found[-1]["penalty"] = run(model, batch(), 3)[1].get("penalty", torch.zeros(()))
    assert len(found[0]) > 1 and found[1]["penalty"].dtype == torch.float32
    assert all(torch.equal(found[1][name], exact) for name, exact in found[0].items())


@amp
def test_task_losses_are_those_of_the_logits_in_float32() -> None:
    model, of = tiny_model(ctc_weight=0.3, model={"distil_attention": True}).train(), batch()
    with in_bfloat16():
        subsampled = model.run_subsampling(of)
        output = model.run_subnet(subsampled, of, model.encoder.sizes["small"])
    logits, attention = output.posteriors.ctc, output.posteriors.attention
    assert logits is not None and attention is not None
    assert output.loss.dtype == logits.dtype == attention.dtype == torch.float32
    ctc = model.ctc.loss_fn(logits.transpose(0, 1), of.labels, subsampled.lengths, of.text_lengths)
    torch.testing.assert_close(output.stats["loss_ctc"], ctc.detach(), rtol=1e-6, atol=0)
    following = with_ends(of.text, model.sos, model.eos, model.ignore_id)[1]
    expected = model.criterion_att(attention, following)
    torch.testing.assert_close(output.stats["loss_att"], expected.detach(), rtol=1e-6, atol=0)


def _logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


def _scaled_adam() -> torch.Tensor:
    parameter = torch.nn.Parameter(_logits(0))
    optimizer = ScaledAdam([parameter], clipping_scale=2.0, clipping_update_period=2, size_update_period=2)
    for seed in range(1, 6):
        parameter.grad = _logits(seed)
        optimizer.step()
    return parameter.detach()


def _kd_weight() -> torch.Tensor:
    weight = DistillationWeight(0.5, {})
    weight.note(torch.tensor(0.7654321), torch.tensor(17))
    return weight.readiness()


def _agreement() -> torch.Tensor:
    stats: dict[str, Any] = {}
    measured = AgreementOfStep([["all"]], ["full", "small"], stats)
    for number in range(2):
        measured(number, [_logits(number)])
    return torch.as_tensor(stats["agreement_all_small"])


_LENGTHS = torch.tensor([5, 4])
ISLANDS: dict[str, Callable[[], torch.Tensor]] = {
    **{
        kind: partial(ctc_frame_distillation, _logits(0), _logits(1), _LENGTHS, Divergence(kind)) for kind in KINDS[::2]
    },
    "distillation of tokens": partial(token_distillation, _logits(0), _logits(1), _LENGTHS, Divergence(), True),
    "consistency": partial(ctc_consistency, [_logits(0), _logits(1)], _logits(2), _LENGTHS),
    "per frame": partial(per_frame, torch.tensor(1.2345678), _LENGTHS, 2),
    "kd_start": _kd_weight,
    "agreement": _agreement,
    "ScaledAdam": _scaled_adam,
}


@amp
@pytest.mark.parametrize("island", ISLANDS)
def test_no_other_arithmetic_is_in_bfloat16(island: str) -> None:
    exact = ISLANDS[island]()
    with in_bfloat16():
        found = ISLANDS[island]()
    assert found.dtype == torch.float32 and torch.equal(found, exact)
