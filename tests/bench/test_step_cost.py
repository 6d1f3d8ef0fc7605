"""What the cost of a step is made of. Speed itself is no matter of tests; see benchmarks/step_cost.py."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from espnet_todm.bench import step_cost as cost
from espnet_todm.bench.step_cost import Memory, Round, Workload, extracted_model, measure_rounds, peak_memory, summary
from espnet_todm.errors import UserError
from espnet_todm.trainers.single import SingleTrainer
from tests.tiny_model import TOKENS, batch, gradients, tiny_model, trained_by
from tests.tiny_training import arguments, python, write_data


def workload(width: int = 20) -> Workload:
    """At module level: child processes build it."""
    return Workload(trained_by(), cost.random_batch(len(TOKENS), width, 2, 1.0))


def test_ratios_are_those_of_each_round() -> None:
    rounds = [Round(1.0, (4.0, 3.0, 2.0), 7.35), Round(2.0, (8.0, 6.0, 4.0), 14.0), Round(1.0, (4.0, 3.0, 2.0), 70.0)]
    assert [r.lower for r in rounds] == [7.0, 14.0, 7.0]  # 1 + 3 + 2 + 1
    assert Round(1.0, (4.0, 3.0, 2.0), 7.35, split=True).lower == 1 + (3 + 2 + 1) / 3
    result = summary(rounds, {"single": Memory(10, 100.04), "supernet": Memory(10, 104)})
    assert result["bound"] == 7 / 4
    assert result["factor"] == pytest.approx(7.35 / 4)  # the round that something else slowed does not count
    assert result["factor_to_bound"] == pytest.approx(1.05)
    assert (result["single_step_seconds"], result["supernet_step_seconds"]) == (4.0, 14.0)
    assert result["peak_memory_mib"] == {"single": 100.0, "supernet": 104}
    json.dumps(result)
    assert "peak_memory_mib" not in summary(rounds)


def test_every_picked_subnet_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = []
    step = cost.plain_step
    monkeypatch.setattr(cost, "plain_step", lambda model, *of: (stepped.append(_size(model)), step(model, *of)))
    of = workload()
    rounds = measure_rounds(of, 2)
    assert len(rounds) == 2
    table, sizes = of.model.component_table(), of.model.encoder.sizes
    expected = [table.cost(sizes[name]).params for name in ("full", "middle", "small")]
    assert stepped == expected * 3  # one round is thrown away
    assert all(len(r.extracted) == 3 and 0 < r.front < r.single and r.supernet > 0 for r in rounds)
    assert all(gradient is None for gradient in gradients(of.model).values())


def test_steps_of_the_warm_up_are_not_the_ones_measured() -> None:
    of = Workload(trained_by(warmup_steps=5), batch())
    assert all(len(r.extracted) == 3 for r in measure_rounds(of, 2))


def test_a_size_is_extracted_from_a_model_with_attention_that_has_made_a_step() -> None:
    model = trained_by(ctc_weight=0.3)
    cost.supernet_step(model, batch(), 0)
    assert _size(extracted_model(model, model.encoder.sizes["small"])) < _size(model)


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_extracted_model_shares_no_weights() -> None:
    model = tiny_model()
    small = extracted_model(model, model.encoder.sizes["small"])
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_models_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(UserError, match="subnet_trainer: kd"):
        measure_rounds(Workload(tiny_model(), batch()), 1)
    with pytest.raises(UserError, match=r"the full one, not 'small'"):
        measure_rounds(Workload(trained_by(SingleTrainer, size="small"), batch()), 1)


def test_random_batches_are_features_or_samples() -> None:
    features, samples = cost.random_batch(9, 20, 3, 2.0), cost.random_batch(9, None, 3, 2.0)
    assert features.speech.shape == (3, 200, 20) and samples.speech.shape == (3, 32000)
    assert features.text.min() >= 1 and features.text.max() < 8


@pytest.mark.recipe
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    filler = torch.ones(2**28)  # 1 GiB here must not count there
    single, supernet = (peak_memory(partial(workload), mode) for mode in ("single", "supernet"))
    del filler
    for memory in (single, supernet):
        assert 100 < memory.before <= memory.peak < 1000 + memory.before / 2


@pytest.mark.recipe
def test_command_writes_cost_json(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    exp = tmp_path / "exp"
    trained = python(["-m", "espnet_todm.bin.asr_train", *arguments(data, exp, "--dry_run", "true")])
    assert trained.returncode == 0, trained.stderr
    options = ["--asr_train_config", str(exp / "config.yaml"), "--output", str(exp / "cost.json")]
    done = python(["-m", "espnet_todm.bin.step_cost", *options, "--rounds", "2", "--utterances", "2", "--seconds", "1"])
    assert done.returncode == 0, done.stderr
    stored = json.loads((exp / "cost.json").read_text())
    assert {"factor", "bound", "single_step_seconds", "supernet_step_seconds", "peak_memory_mib"} <= stored.keys()
    assert stored["peak_memory_mib"].keys() == {"single", "supernet"}


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: no such file"):
        cost.workload_of_config(str(tmp_path / "config.yaml"), 1, 1.0)
